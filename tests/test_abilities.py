"""The abilities of each family, and of each wrapper around each family: what is there, and what is not."""

from types import SimpleNamespace

import pytest

from zoo.errors import UserError
from zoo.families import FAMILIES, build_method, families_with, family_class, require
from zoo.method import ABILITIES, Fills, Method, Reward, Scorer, members
from zoo.wrappers.compose import compose, forwarding

RECIPES = {
    "diffusion": "configs/diffusion.py:test",
    "mean_flow": "configs/mean_flow.py:test",
    "flow": "configs/flow.py:test",
    "vae": "configs/vae.py:test",
    "contrastive": "configs/clip.py:test",
    "generator": "configs/gan.py:test",
    "patches": "configs/patches.py:test",
    "masked": "configs/tokens.py:masked,test",
    "autoregressive": "configs/tokens.py:autoregressive,test",
    "continuous": "configs/tokens.py:continuous,test",
}
CODES = {"masked": 12, "autoregressive": 12}
OF_FAMILIES = {
    "diffusion": "Generates HasFakeSample HasLikelihood Reconstructs Invertible HasTrajectory Denoises "
    "ReadsGiven FeatureExtractor",
    "mean_flow": "Generates ReadsGiven",
    "flow": "Generates HasFakeSample HasLikelihood Reconstructs Invertible",
    "vae": "Generates HasFakeSample HasLikelihood Reconstructs Invertible Autoencodes",
    "contrastive": "Scorer Embeds",
    "generator": "Generates HasFakeSample Reconstructs Invertible",
    "patches": "HasFakeSample Reconstructs Autoencodes Tokenizes",
    "masked": "Generates HasLikelihood HasTrajectory Fills Drafts",
    "autoregressive": "Generates HasLikelihood HasTrajectory Fills Drafts Speculates",
    "continuous": "Generates Fills",
}
UNDER_A_CRITIC = {
    "diffusion": "Generates HasLikelihood Reconstructs Invertible HasTrajectory Denoises FeatureExtractor Scorer",
    "flow": "Generates HasLikelihood Reconstructs Invertible FeatureExtractor Scorer",
    "vae": "Generates HasLikelihood Reconstructs Invertible FeatureExtractor Scorer Autoencodes",
    "generator": "Generates Reconstructs Invertible FeatureExtractor Scorer",
    "patches": "Reconstructs FeatureExtractor Scorer Autoencodes Tokenizes",
}
BY_A_REWARD = {
    "diffusion": "Generates HasLikelihood Reconstructs Invertible HasTrajectory Denoises FeatureExtractor",
    "flow": "Generates HasLikelihood Reconstructs Invertible",
    "vae": "Generates HasLikelihood Reconstructs Invertible Autoencodes",
    "generator": "Generates Reconstructs Invertible",
}
BESIDE_IMAGES = {
    name: " ".join(word for word in able.split() if word not in ("HasFakeSample", "ReadsGiven"))
    for name, able in OF_FAMILIES.items()
}
UNDER_A_TOKEN_CRITIC = {"masked": "Generates HasLikelihood Fills"}
OF_COARSE_CODES = dict.fromkeys(("masked", "autoregressive", "continuous"), "Generates Fills")
AS_A_STAGE = {
    "diffusion": "Generates HasFakeSample HasLikelihood Denoises Upsamples",
    "mean_flow": "Generates Upsamples",
}
OPENED = {Reward: SimpleNamespace(differentiable=True), Fills: SimpleNamespace(SampleOptions=object)}


@pytest.fixture
def section(tiny):
    """section("flow") -> its section of a config."""

    def section(family):
        fields = tiny(spec=RECIPES[family]).method.to_dict()
        return fields["base"] if family == "generator" else fields

    return section


@pytest.fixture
def wrapped(section, tiny):
    """wrapped("rewarded", "flow") -> the method."""

    def wrapped(wrapper, family):
        more = {"adversarial": {"critic": tiny(spec="configs/gan.py:test").method.critic.to_dict()}}
        more |= {"rewarded": {"reward": "any"}, "upsampling": {"scale": 2}, "coarse": {"filler": "any"}}
        more |= {"personalized": {"token_ids": (2,), "start_ids": (), "base_step": 0}}
        more |= {"token_critic": {"critic": tiny(spec="configs/tokens.py:masked,test").method.net.to_dict()}}
        fields = {"name": wrapper, "base": section(family)} | more.get(wrapper, {})
        opened = lambda key, name, value, protocol: OPENED.get(protocol)
        return build_method(fields, 64, "float32", opened, codes=CODES.get(family))

    return wrapped


def abilities(method):
    assert isinstance(method, Method)
    return " ".join(protocol.__name__ for protocol in ABILITIES if isinstance(method, protocol))


def test_every_family_of_the_registry_is_here():
    assert {name for name, family in FAMILIES.items() if not family.wraps} == set(OF_FAMILIES)
    assert {name for name, family in FAMILIES.items() if family.wraps} == {
        "adversarial",
        "coarse",
        "joint",
        "personalized",
        "rewarded",
        "token_critic",
        "upsampling",
    }


@pytest.mark.parametrize("family", OF_FAMILIES)
def test_a_family_has_these_abilities_alone(section, family):
    assert abilities(build_method(section(family), 64, "float32", codes=CODES.get(family))) == OF_FAMILIES[family]
    for protocol in ABILITIES:
        assert (family in families_with(protocol)) == (protocol.__name__ in OF_FAMILIES[family].split())


@pytest.mark.parametrize("family", OF_FAMILIES)
@pytest.mark.parametrize(
    "wrapper, expected",
    [
        ("adversarial", UNDER_A_CRITIC),
        ("rewarded", BY_A_REWARD),
        ("joint", BESIDE_IMAGES),
        ("personalized", BESIDE_IMAGES),
        ("upsampling", AS_A_STAGE),
        ("token_critic", UNDER_A_TOKEN_CRITIC),
        ("coarse", OF_COARSE_CODES),
    ],
)
def test_a_wrapped_family_has_these_abilities_alone(wrapped, wrapper, expected, family):
    if family not in expected:
        lacking = (
            r"method.base: (\w+ lacks the ability \w+; families with it: (diffusion|masked)|a critic masks codes again)"
        )
        with pytest.raises(UserError, match=lacking):
            wrapped(wrapper, family)
        return
    method = wrapped(wrapper, family)
    assert abilities(method) == expected[family]
    for protocol in set(ABILITIES) - set(type(method).__mro__):
        if protocol.__name__ not in expected[family].split():
            with pytest.raises(UserError, match=f"lacks the ability {protocol.__name__}"):
                require(method, protocol)


def test_a_missing_ability_is_an_error_that_names_the_families_with_it(section):
    method = build_method(section("diffusion"), 64, "float32")
    with pytest.raises(UserError, match="Diffusion lacks the ability Scorer; families with it: contrastive, adversar"):
        require(method, Scorer)


def test_a_forwarded_function_gets_the_parameters_of_the_base():
    class Base:
        def score(self, params, inputs, cond):
            return params, inputs, cond

    class Wrapper:
        FORWARDS = (Scorer,)
        base = Base()

        def base_params(self, params):
            return params["inner"]

    cls = compose(Wrapper, Base())
    assert cls.__name__ == "Wrapper" and cls().score({"inner": 1}, 2, 3) == (1, 2, 3)
    assert cls().score({"inner": 1}, 2, cond=3) == (1, 2, 3)
    assert not isinstance(compose(Wrapper, object())(), Scorer)


@pytest.mark.parametrize("protocol", ABILITIES)
def test_forwarding_covers_all_members_of_a_protocol(protocol):
    assert members(protocol) and all(hasattr(forwarding(protocol), name) for name in members(protocol))


@pytest.mark.parametrize("name", FAMILIES)
def test_an_address_of_the_registry_is_a_class_with_players(name):
    cls = family_class(name)
    assert cls.__module__ == FAMILIES[name].address.partition(":")[0] and hasattr(cls, "players")
