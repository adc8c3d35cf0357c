"""Makes tests/fixtures/clip anew, where torch and transformers are installed:

    python -m tests.make_clip_fixture

Two tiny CLIPs with random weights as transformers saves them, and in expected.npz what transformers makes of some
images and captions. `legacy` is configured as OpenAI's models are. `gelu` names its end token, which is not the
highest id, has another activation and normalisation, and leaves out of its config what transformers fills in.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from PIL import Image
from tokenizers.trainers import BpeTrainer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

HERE = Path(__file__).parent / "fixtures" / "clip"
SIZE, LENGTH = 24, 16
START, END = "<|startoftext|>", "<|endoftext|>"
LEARNED = [f"a {colour} {shape}" for colour in ("red", "green", "blue") for shape in ("circle", "square", "star")]
CAPTIONS = ["a red star", "", "A  Blue\tCIRCLE!", "ein grüner Stern ☃", "it's 2 stars", " ".join(LEARNED)]
SIDES = ((37, 53), (61, 40), (20, 21))  # of the images: wide, tall, and one to be enlarged


def new_tokenizer(specials: list[str]) -> transformers.CLIPTokenizer:
    """Byte-level BPE like CLIP's: bytes, bytes that end a word, merges, special tokens."""
    like = transformers.CLIPTokenizer().backend_tokenizer
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer, bpe.pre_tokenizer = like.normalizer, like.pre_tokenizer
    bpe.train_from_iterator(LEARNED, BpeTrainer(vocab_size=80, end_of_word_suffix="</w>", show_progress=False))
    merges = [tuple(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]]
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), *specials]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return transformers.CLIPTokenizer(vocab=vocab, merges=merges)


def randomise(model: torch.nn.Module) -> None:
    """No parameter keeps a value, such as 0 or 1, that would hide a mistake."""
    for name, p in model.named_parameters():
        noise = torch.randn_like(p)
        if "norm" in name or "lay" in name and p.ndim == 1:
            p.data = ("weight" in name) + 0.3 * noise
        else:
            p.data = noise if p.ndim < 2 or "embedding.weight" in name else 1.5 * noise / p[0].numel() ** 0.5
    model.logit_scale.data.fill_(2.5)


def smooth_image(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Waves with an edge and a little grain, uint8 (height, width, 3)."""
    y, x = np.mgrid[:height, :width] / 10
    waves = np.stack([np.sin(a * y + b * x + c) for a, b, c in rng.normal(size=(3, 3))], axis=-1)
    waves[height // 3 :, width // 2 :] *= -0.7
    return np.clip(128 + 150 * waves + rng.normal(0, 4, waves.shape), 0, 255).astype(np.uint8)


def make(folder: Path, specials: list[str], text: dict, vision: dict, **normalisation) -> None:
    tokenizer = new_tokenizer(specials)
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "eos_token_id": tokenizer.eos_token_id,
    } | text
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20))
    randomise(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    square = {"height": SIZE, "width": SIZE}
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=square, **normalisation)
    processor.save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"text_config": text, "vision_config": vision}, indent=2) + "\n")

    model = transformers.CLIPModel.from_pretrained(folder, attn_implementation="eager").eval()
    rng = np.random.default_rng(0)
    images = [smooth_image(*sides, rng) for sides in SIDES]
    x = processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
    ids = tokenizer(CAPTIONS, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")[
        "input_ids"
    ]
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=x)
        np.savez_compressed(
            folder / "expected.npz",
            **{f"image_{i}": image for i, image in enumerate(images)},
            x=x.permute(0, 2, 3, 1).numpy(),
            captions=np.array(CAPTIONS),
            ids=ids.numpy(),
            images=model.get_image_features(pixel_values=x).pooler_output.numpy(),
            texts=model.get_text_features(input_ids=ids).pooler_output.numpy(),
            logits=out.logits_per_image.numpy(),
        )


if __name__ == "__main__":
    torch.manual_seed(0)
    shutil.rmtree(HERE, ignore_errors=True)
    common = {"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 40}
    vision = {**common, "image_size": SIZE, "patch_size": 8}
    legacy = {"num_attention_heads": 2, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    make(HERE / "legacy", [START, END], {**common, **legacy, "eos_token_id": 2}, {**vision, **legacy})
    gelu = {"hidden_act": "gelu", "layer_norm_eps": 1e-3}
    narrow = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.4, 0.6]}
    make(HERE / "gelu", [END, START], {**common, **gelu, "hidden_size": 16}, {**vision, **gelu}, **narrow)
