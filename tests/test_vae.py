import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import Easy, as_cond
from zoo import config as configs
from zoo.conditions import END
from zoo.distributions import Gaussian, Latent, iwae_bound, mixture_log_prob, mixture_mean, normal_kl, sum_except_batch
from zoo.errors import UserError
from zoo.families import build_method
from zoo.method import Axis, normal_each, to_float
from zoo.methods.vae import Vae
from zoo.nets.autoencoder import average_channels, channel_to_space, repeat_channels, space_to_channel
from zoo.nets.convolution import convolve_by_product
from zoo.nets.hierarchy import LOG_STD, to_gaussian

NET = dict(
    patch_size=2,
    width=8,
    bottleneck=2,
    encoder_blocks=(1, 1),
    decoder_blocks=(1, 2),
    latent_dim=2,
    attention_size=2,
    heads=2,
    conditioner=dict(width=8, depth=1, heads=2),
    mixtures=2,
)
PLAIN = dict(widths=(4, 8), blocks=1, latent_dim=3, mixtures=1)
ARCHITECTURES = {"hierarchical": NET, "autoencoder": PLAIN}
SHAPE = (1, 8, 8, 3)
EMPTY = np.array([END, 0, 0, 0], np.int32)
DIMENSIONS = math.prod(SHAPE)
RNG = np.random.default_rng(0)
BATCH = dict(
    inputs=RNG.integers(0, 256, (4, *SHAPE), dtype=np.uint8),
    cond=dict(tokens=np.array([[5, 6, END, 0], [7, END, 0, 0], [8, 9, 10, END], [11, END, 0, 0]], np.int32)),
)
PIXELS = to_float(BATCH["inputs"])


@functools.cache
def method(architecture="hierarchical", **changes):
    fields = dict(net=ARCHITECTURES[architecture], vocab_size=32, dtype=jnp.float32, architecture=architecture)
    return Easy(Vae(**fields | changes))


@functools.cache
def params(architecture="hierarchical"):
    """Fresh parameters with all zeros among them replaced, so that every path of the network is open."""
    fresh = jax.jit(method(architecture).init)(jax.random.key(0), BATCH)
    leaves, tree = jax.tree.flatten(fresh)
    rng = np.random.default_rng(1)
    return tree.unflatten([leaf + np.float32(0.1) * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])


@functools.cache
def compiled(architecture, name, **options):
    return jax.jit(functools.partial(getattr(method(architecture), name), **options))


def keys(*numbers):
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))(jnp.array(numbers))


class Stub:
    """A network that is a few lines: two groups of latents, and a mixture that depends on them and the caption."""

    @property
    def network(self):
        return self

    def noise_shapes(self, shape):
        return [(2, 1, 1, 1, 5)]

    def apply(self, variables, x, eps, cond):
        p, tokens = variables["params"], cond["tokens"]
        like = jnp.zeros_like(eps[0]) + x.mean(axis=(1, 2, 3, 4)).reshape(-1, 1, 1, 1, 1, 1)
        size = jnp.array([2.0, 0.01]).reshape(1, 2, 1, 1, 1, 1)  # the second group tells next to nothing
        posterior = Gaussian(p["mean"] * size + 0.01 * like, -0.5 * size)
        prior = Gaussian(0.1 * p["prior"] + jnp.zeros_like(like), jnp.zeros_like(like))
        z = posterior.sample(eps[0])
        words = (tokens % 7).mean(axis=-1).reshape(-1, 1, 1, 1, 1)
        raw = jnp.ones((*x.shape[:-1], 20)) * (0.1 * z.sum(axis=(1, 2, 3, 4, 5)).reshape(-1, 1, 1, 1, 1) - 0.1 * words)
        return raw + 0.1 * jnp.arange(20), [Latent(posterior, prior, z)]


class Simple(Vae):
    network = Stub()


SIMPLE = {"model": {"mean": jnp.float32(1.0), "prior": jnp.float32(1.0)}}


@functools.cache
def simple_loss(**changes):
    return jax.jit(functools.partial(simple(**changes).loss, "model", axis=Axis()))


def simple(**changes):
    return Easy(Simple(**dict(net={}, vocab_size=32, dtype=jnp.float32) | changes))


def loss_of(step=0, batch=BATCH, seed=0, **changes):
    """(loss, Output) of the simple network, as numbers."""
    loss, output = simple_loss(**changes)(SIMPLE, batch, jax.random.key(seed), step=jnp.int32(step))
    return float(loss), output.replace(metrics=jax.tree.map(float, output.metrics))


@jax.jit
def means_of(params, x, tokens):
    return method()._apply_means(params, x, as_cond(tokens))


RUNS = [keys(*range(4 * i, 4 * i + 4)) for i in range(20)]


def take(tree, rows):
    return jax.tree.map(lambda x: x[np.array(rows)], tree)


# ---- the bound, on a model whose evidence is known in closed form: x = W z + b + noise

W = RNG.normal(size=(5, 2))
B = RNG.normal(size=5)
NOISE = 0.6
X = RNG.normal(size=(6, 5)) @ np.linalg.cholesky(W @ W.T + NOISE**2 * np.eye(5)).T + B


def evidence():
    """log N(x; b, W W^T + s^2 I) in float64."""
    covariance = W @ W.T + NOISE**2 * np.eye(5)
    distance = np.einsum("ni,ij,nj->n", X - B, np.linalg.inv(covariance), X - B)
    return -0.5 * (distance + np.linalg.slogdet(2 * np.pi * covariance)[1])


def linear_bound(samples, shift=0.0, stretch=1.0, count=1):
    """The bound where q is the exact posterior, moved by `shift` and wider by `stretch`; the mean over `count` runs.

    The posterior is no diagonal Gaussian in z, but it is one in the basis of W's right singular vectors.
    """
    _, singular, basis = np.linalg.svd(W)
    precision = 1 + singular**2 / NOISE**2
    loading = W @ basis.T  # of z in that basis, which has the same prior
    mean = (X - B) @ loading / NOISE**2 / precision

    def log_weight(rng):
        log_std = jnp.full((6, 2), jnp.log(stretch / np.sqrt(precision)))
        posterior, prior = Gaussian(jnp.float32(mean + shift), log_std), Gaussian(jnp.zeros((6, 2)), jnp.zeros((6, 2)))
        z = posterior.sample(normal_each(rng, (2,)))
        likelihood = Gaussian(z @ loading.T + B, jnp.full((6, 5), np.log(NOISE)))
        return sum_except_batch(likelihood.log_prob(X)) + Latent(posterior, prior, z).log_ratio()

    @jax.jit
    def bounds(seeds):
        return jax.lax.map(lambda seed: iwae_bound(log_weight, jax.random.split(seed, 6), samples), seeds)

    return np.asarray(bounds(jax.random.split(jax.random.key(0), count))).mean(axis=0)


@pytest.mark.parametrize("samples", [1, 7])
def test_the_bound_is_the_evidence_where_the_posterior_is_exact(samples):
    """Of each image and in each draw: the weights do not vary."""
    np.testing.assert_allclose(linear_bound(samples), evidence(), rtol=1e-4, atol=1e-4)


def test_the_bound_of_a_wrong_posterior_is_lower_and_more_samples_come_closer():
    one, eight, many = (linear_bound(samples, shift=0.3, stretch=1.5, count=400) for samples in (1, 8, 64))
    assert (one < eight).all() and (eight < many).all() and (many < evidence() + 0.01).all()
    assert (evidence() - one).min() > 0.3
    np.testing.assert_allclose(many, evidence(), atol=0.05)


def test_the_bound_of_one_sample_falls_short_by_the_kl_to_the_exact_posterior():
    singular = np.linalg.svd(W)[1]
    std = 1 / np.sqrt(1 + singular**2 / NOISE**2)
    gap = normal_kl(0.3, np.log(1.5 * std), 0.0, np.log(std)).sum()
    short = evidence() - linear_bound(1, shift=0.3, stretch=1.5, count=4000)
    np.testing.assert_allclose(short, gap, rtol=0.1)


def test_a_bound_of_no_samples_is_refused():
    with pytest.raises(UserError, match="samples must be at least 1, got 0"):
        iwae_bound(lambda rng: rng, keys(0), 0)


# ---- the loss


@pytest.mark.parametrize("least", [-7.0, 3.0])
def test_loss_is_distortion_and_rate_in_bits_per_dimension(least):
    """Reckoned anew from what the network says, for the noise that the loss drew."""
    rng_noise, _ = jax.random.split(jax.random.key(0))
    eps = simple().draw_noise(jax.random.split(rng_noise, 4), SHAPE)
    raw, [latent] = Stub().apply({"params": SIMPLE["model"]}, PIXELS, eps, BATCH["cond"])
    nats = np.asarray(mixture_log_prob(raw, PIXELS, least), np.float64).sum(axis=(1, 2, 3))
    assert least == -7.0 or nats.mean() != pytest.approx(
        float(sum_except_batch(mixture_log_prob(raw, PIXELS)).mean()), rel=1e-2
    )
    rates = kl_by_hand(latent)
    loss, output = loss_of(caption_drop=0.0, least_log_scale=least)
    metrics = output.metrics
    assert metrics["distortion"] == pytest.approx(-nats.mean() / DIMENSIONS / math.log(2), rel=1e-4)
    assert metrics["rate"] == pytest.approx(sum(rates) / DIMENSIONS / math.log(2), rel=1e-4)
    assert metrics["bits_per_dim"] == pytest.approx(metrics["distortion"] + metrics["rate"])
    assert loss == metrics["loss"] == pytest.approx(metrics["bits_per_dim"], rel=1e-5)
    assert rates[0] > 1 and rates[1] < 0.1 * math.log(2) and metrics["active_groups"] == 1
    np.testing.assert_allclose(output.fake, mixture_mean(raw), atol=1e-5)


def kl_by_hand(latent):
    """The mean over images of each group, in float64."""
    (mean, log_std), (mean_p, log_std_p) = (map(np.float64, gaussian) for gaussian in latent[:2])
    kl = log_std_p - log_std + (np.exp(2 * log_std) + (mean - mean_p) ** 2) / (2 * np.exp(2 * log_std_p)) - 0.5
    return kl.sum(axis=(2, 3, 4, 5)).mean(axis=0)


def test_the_rates_weight_rises_in_a_line_to_its_full_value():
    plain = loss_of()[1].metrics
    for step, weight in ((0, 0.25), (1, 0.5), (3, 1.0), (9, 1.0)):
        loss, output = loss_of(step=step, warmup=(0, 4))
        assert loss == pytest.approx(plain["distortion"] + weight * plain["rate"], rel=1e-5)
        assert output.metrics["bits_per_dim"] == plain["bits_per_dim"]  # which no weight changes
    loss, _ = loss_of(step=1, warmup=(0, 4), kl_weight=0.1)
    assert loss == pytest.approx(plain["distortion"] + 0.05 * plain["rate"], rel=1e-5)


def test_the_first_values_hold_until_the_warm_up_begins_and_then_move_in_a_line():
    first = dict(first_kl_weight=9.0, first_log_scale=-1.0)
    for step, kl_weight, least in ((0, 9.0, -1.0), (2, 9.0, -1.0), (4, 5.0, -4.0), (6, 1.0, -7.0), (9, 1.0, -7.0)):
        loss, _ = loss_of(step=step, warmup=(3, 7), **first)
        _, output = loss_of(least_log_scale=least)
        assert loss == pytest.approx(output.metrics["distortion"] + kl_weight * output.metrics["rate"], rel=1e-5)


def test_free_bits_are_the_least_that_each_group_costs():
    plain = loss_of()[1].metrics
    free = 1e4  # bits: more than any group tells
    loss, output = loss_of(free_bits=free)
    assert loss == pytest.approx(plain["distortion"] + 2 * free / DIMENSIONS, rel=1e-5)  # two groups
    assert output.metrics["rate"] == plain["rate"]
    assert loss_of(free_bits=1e-6)[0] == pytest.approx(plain["loss"], rel=1e-6)


def test_free_bits_leave_the_rate_of_a_group_below_without_a_gradient():
    def slope(free_bits):
        loss = lambda p: simple(free_bits=free_bits).loss("model", p, BATCH, jax.random.key(0), Axis(), 0)[0]
        return jax.jit(jax.grad(loss))(SIMPLE)["model"]["prior"]  # takes no part in what the image is made of

    first_alone = slope(1.0)  # the second tells less than a bit
    assert slope(1e4) == 0.0
    assert abs(first_alone) > 0 and first_alone != slope(0.0)


def test_free_bits_are_compared_with_the_mean_over_devices():
    class Two(Axis):
        """The other device's groups tell far more."""

        def pmean(self, tree):
            return tree + 1e5

    loss, output = jax.jit(lambda p: simple(free_bits=1e4).loss("model", p, BATCH, jax.random.key(0), Two(), 0))(SIMPLE)
    assert float(loss) == pytest.approx(float(output.metrics["bits_per_dim"]), rel=1e-5)


def test_dropped_captions_are_not_read():
    other = BATCH | dict(cond=dict(tokens=BATCH["cond"]["tokens"][::-1]))
    assert loss_of(caption_drop=1.0)[0] == loss_of(caption_drop=1.0, batch=other)[0]
    empty = BATCH | dict(cond=dict(tokens=np.tile(EMPTY, (4, 1))))
    assert loss_of(caption_drop=1.0)[0] == loss_of(caption_drop=0.0, batch=empty)[0]
    assert loss_of(caption_drop=0.0)[0] != loss_of(caption_drop=0.0, batch=other)[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.slow
def test_all_parameters_learn(architecture):
    """From one step: none is unused. `fake` has a gradient too."""
    model = method(architecture)

    def both(p):
        loss, output = model.loss("model", p, BATCH, jax.random.key(0), Axis(), 0)
        return loss + output.fake.mean()

    gradient = jax.jit(jax.grad(both))(params(architecture))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


# ---- images, noise and latents


@pytest.mark.parametrize("architecture", ["autoencoder", pytest.param("hierarchical", marks=pytest.mark.slow)])
def test_sampling_is_generating_of_drawn_noise(architecture):
    options = dict(shape=SHAPE, temperature=0.5)
    sampled = compiled(architecture, "sample", **options)(
        params(architecture), keys(1, 2, 3, 4), BATCH["cond"]["tokens"]
    )
    noise = method(architecture).draw_noise(keys(1, 2, 3, 4), SHAPE)
    made = compiled(architecture, "generate", temperature=0.5)(params(architecture), noise, BATCH["cond"]["tokens"])
    np.testing.assert_allclose(sampled, made, atol=1e-6)
    assert sampled.shape == (4, *SHAPE) and sampled.dtype == jnp.float32 and np.abs(sampled).max() <= 1 + 1e-6


def test_noise_is_standard_and_its_own_in_each_group_and_image():
    noise = method().draw_noise(keys(*range(500)), (2, 16, 16, 3))
    assert [eps.shape[1:] for eps in noise] == [(2, 2, 4, 4, 2), (1, 2, 8, 8, 2)]  # groups, frames, ...
    for eps in noise:
        assert abs(eps.mean()) < 0.02 and abs(eps.std() - 1) < 0.02
    flat = np.concatenate([np.asarray(eps[:2]).reshape(2, -1) for eps in noise], axis=1)
    assert len(np.unique(flat)) == flat.size


@pytest.mark.slow
def test_temperature_is_that_of_the_noise():
    noise = method().draw_noise(keys(1, 2, 3, 4), SHAPE)
    halved = jax.tree.map(lambda eps: eps / 2, noise)
    generate = compiled("hierarchical", "generate")
    cooled = compiled("hierarchical", "generate", temperature=0.5)(params(), noise, BATCH["cond"]["tokens"])
    np.testing.assert_allclose(cooled, generate(params(), halved, BATCH["cond"]["tokens"]), atol=1e-6)
    assert not np.allclose(cooled, generate(params(), noise, BATCH["cond"]["tokens"]), atol=1e-3)


@pytest.mark.parametrize("architecture", [pytest.param("hierarchical", marks=pytest.mark.slow), "autoencoder"])
def test_generating_of_inverted_noise_is_the_reconstruction(architecture):
    options = dict(temperature=0.5)
    noise = compiled(architecture, "invert", **options)(
        params(architecture), keys(0, 1, 2, 3), PIXELS, BATCH["cond"]["tokens"]
    )
    again = compiled(architecture, "generate", **options)(params(architecture), noise, BATCH["cond"]["tokens"])
    reconstructed = compiled(architecture, "reconstruct")(params(architecture), keys(0, 1, 2, 3), BATCH)
    np.testing.assert_allclose(again, reconstructed, atol=2e-5)
    assert jax.tree.map(jnp.shape, noise) == jax.tree.map(
        jnp.shape, method(architecture).draw_noise(keys(0, 1, 2, 3), SHAPE)
    )


def test_an_image_cannot_be_inverted_at_temperature_zero():
    with pytest.raises(UserError, match="temperature 0"):
        method().invert(params(), keys(0, 1, 2, 3), PIXELS, BATCH["cond"]["tokens"], temperature=0.0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", ["bits_per_dim", "reconstruct"])
def test_an_image_does_not_depend_on_those_beside_it(architecture, name):
    function = compiled(architecture, name)
    whole = function(params(architecture), keys(0, 1, 2, 3), BATCH)
    turned = function(params(architecture), keys(2, 3, 0, 0), take(BATCH, [2, 3, 0, 0]))
    np.testing.assert_allclose(whole[np.array([2, 3, 0, 0])], turned, atol=1e-5)


def test_a_sample_does_not_depend_on_those_beside_it():
    sample = compiled("hierarchical", "sample", shape=SHAPE, temperature=0.5)
    whole = sample(params(), keys(0, 1, 2, 3), BATCH["cond"]["tokens"])
    turned = sample(params(), keys(2, 3, 0, 0), BATCH["cond"]["tokens"][np.array([2, 3, 0, 0])])
    np.testing.assert_allclose(whole[np.array([2, 3, 0, 0])], turned, atol=1e-5)
    assert not np.allclose(whole[0], whole[1], atol=1e-3)


@pytest.mark.slow
def test_bits_per_dim_agree_with_the_loss_and_fall_with_more_samples():
    one, many = (
        np.mean(
            [jax.jit(functools.partial(simple().bits_per_dim, samples=samples))(SIMPLE, rng, BATCH) for rng in RUNS], 0
        )
        for samples in (1, 16)
    )
    assert one.shape == (4,) and one.dtype == np.float32
    assert (many < one).all()
    losses = [loss_of(seed=seed, caption_drop=0.0)[1].metrics["bits_per_dim"] for seed in range(20)]
    assert one.mean() == pytest.approx(np.mean(losses), rel=0.02)


def test_the_latents_of_an_autoencoder_are_its_posteriors_means():
    latents = compiled("autoencoder", "encode")(params("autoencoder"), PIXELS)
    assert latents.shape == (4, 1, 2, 2, 3) and latents.dtype == jnp.float32  # f4
    images = compiled("autoencoder", "decode")(params("autoencoder"), latents)
    reconstructed = compiled("autoencoder", "reconstruct")(params("autoencoder"), keys(0, 1, 2, 3), BATCH)
    np.testing.assert_allclose(images, reconstructed, atol=1e-5)


def test_a_hierarchy_has_no_one_latent():
    for call in (lambda: method().encode(params(), PIXELS), lambda: method().decode(params(), PIXELS)):
        with pytest.raises(UserError, match="architecture=autoencoder"):
            call()


def test_an_image_takes_one_pass():
    assert method().evaluations(temperature=0.7) == 1


# ---- the networks


def test_a_hierarchy_begins_with_standard_priors_and_the_last_layers_begin_small():
    fresh = jax.jit(method().init)(jax.random.key(0), BATCH)
    _, latents = means_of(fresh, PIXELS, BATCH["cond"]["tokens"])
    for latent in latents:
        np.testing.assert_array_equal(latent.prior.mean, 0.0)
        np.testing.assert_array_equal(latent.prior.log_std, 0.0)
        assert np.abs(latent.posterior.mean).max() > 0


@pytest.mark.parametrize("size", [1, 3])
def test_a_convolution_by_a_product_is_a_convolution(size):
    """In value and in gradient, against XLA's own."""
    x, kernel = (RNG.normal(size=shape).astype(np.float32) for shape in ((2, 4, 5, 3), (size, size, 3, 6)))

    def own(x, kernel):
        return jnp.sin(convolve_by_product(x, kernel)).sum()

    def theirs(x, kernel):
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.sin(y).sum()

    for one, other in zip(*(jax.jit(jax.grad(f, argnums=(0, 1)))(x, kernel) for f in (own, theirs)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert float(own(x, kernel)) == pytest.approx(float(theirs(x, kernel)), abs=1e-3)


def test_log_stds_are_bounded():
    gaussian = to_gaussian(jnp.array([[1e9, -1e9], [1e9, 0.1]]).T.reshape(2, 2))
    assert np.abs(gaussian.log_std).max() <= LOG_STD
    assert to_gaussian(jnp.array([3.0, 0.1])).log_std == pytest.approx(0.1, abs=1e-4)


def test_the_prior_reads_the_words_and_not_only_their_mean():
    """Two captions of the same words in another order, and noise that is the same."""
    noise = method().draw_noise(keys(0), SHAPE)
    captions = np.array([[[5, 6, 7, END]], [[7, 6, 5, END]]], np.int32)
    one, other = (compiled("hierarchical", "generate")(params(), noise, caption) for caption in captions)
    assert not np.allclose(one, other, atol=1e-4)


def test_padding_of_a_caption_changes_nothing():
    noise = method().draw_noise(keys(0), SHAPE)
    tree = jax.tree.map(lambda x: x, params())
    long = np.array([[5, 6, END, 0]], np.int32)
    made = compiled("hierarchical", "generate")(tree, noise, long)
    text = tree["model"]["conditioner"]
    tree["model"]["conditioner"] = text | {"positions": text["positions"].at[3].set(9.0)}
    np.testing.assert_allclose(compiled("hierarchical", "generate")(tree, noise, long), made, atol=1e-6)


def test_shortcuts_move_channels_and_back():
    x = RNG.normal(size=(2, 4, 6, 8))
    assert space_to_channel(x).shape == (2, 2, 3, 32)
    np.testing.assert_array_equal(channel_to_space(space_to_channel(x)), x)
    np.testing.assert_array_equal(repeat_channels(x, 16)[..., 2:4], x[..., [1, 1]])
    np.testing.assert_allclose(average_channels(repeat_channels(x, 16), 8), x)
    np.testing.assert_allclose(average_channels(x, 4)[..., 0], x[..., :2].mean(axis=-1))


# ---- recipes and bad input


@pytest.mark.parametrize("words", ["", "cpu", "demo", "test"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_architectures_go_with_each_word(architecture, words):
    config = configs.load(f"configs/vae.py:{'autoencoder,' if architecture == 'autoencoder' else ''}{words}")
    model = build_method(config.method, 400, config.dtype)
    assert model.architecture == architecture
    size = config.data.size
    batch = dict(
        inputs=jax.ShapeDtypeStruct((1, 1, size, size, 3), jnp.uint8),
        cond=dict(tokens=jax.ShapeDtypeStruct((1, 8), jnp.int32)),
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    kept = config.data.size // (4 if architecture == "autoencoder" else config.method.net.patch_size)
    assert model.network.network.noise_shapes((1, size, size, 3))[-1][2:4] == (kept, kept)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(architecture="flat", net=NET), "unknown architecture of a VAE 'flat'"),
        (dict(kl_weight=-1.0), r"kl_weight must be in \[0, inf\), got -1.0"),
        (dict(first_kl_weight=-1.0), "first_kl_weight must be in"),
        (dict(warmup=(5, 2)), r"warmup must be two steps, the first one earlier, got \(5, 2\)"),
        (dict(warmup=(1,)), "warmup must be two steps"),
        (dict(free_bits=-0.5), "free_bits must be in"),
        (dict(net=NET | dict(widht=3)), "config key in method.net 'widht': did you mean 'width'"),
        (dict(net=NET | dict(encoder_blocks=(1,))), "have as many levels, of at least one"),
        (dict(net=NET | dict(encoder_blocks=(1,) * 4, decoder_blocks=(1,) * 4)), "divisible by 16, got 8 x 8"),
        (dict(net=NET | dict(patch_size=3)), "divisible by 6, got 8 x 8"),
        (dict(net=NET | dict(heads=3)), "width 8 is not divisible by heads 3"),
        (dict(net=PLAIN | dict(widths=(4,) * 4), architecture="autoencoder"), "divisible by 16, got 8 x 8"),
        (dict(net=PLAIN | dict(widths=(4, 24)), architecture="autoencoder"), "24 after 4"),
    ],
)
def test_what_cannot_be_is_an_error_before_training(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        model = Vae(**dict(net=NET, vocab_size=32, dtype=jnp.float32) | changes)
        jax.eval_shape(model.init, jax.random.key(0), BATCH)
    assert "\n" not in str(caught.value)


def test_images_must_be_in_levels_and_in_colour():
    latents = BATCH | dict(inputs=np.zeros((4, *SHAPE), np.float32))
    grey = BATCH | dict(inputs=BATCH["inputs"][..., :1])
    with pytest.raises(UserError, match="uint8 pixels, got float32"):
        method().init(jax.random.key(0), latents)
    with pytest.raises(UserError, match="uint8 pixels, got float32"):
        method().bits_per_dim(params(), keys(0, 1, 2, 3), latents)
    with pytest.raises(UserError, match="1 channels"):
        method().init(jax.random.key(0), grey)
