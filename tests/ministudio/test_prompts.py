"""Prompts: views, embeddings, the cache, Perp-Neg, and what can be wrong with a prompt or a model."""

import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import ministudio
from ministudio.models.prompt_processors import cache
from ministudio.models.prompt_processors.directions import FRONT, VIEWS, PerpNeg, Thresholds, view_prompts, wrap
from ministudio.utils.config import ConfigError

PROCESSOR = "stable-diffusion-prompt-processor"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "CACHE_DIR", tmp_path / "cache")


@pytest.fixture
def build(model_folder):
    def build(prompt="a red ball", **config):
        return ministudio.find(PROCESSOR)({"prompt": prompt, "pretrained_model_name_or_path": str(model_folder), **config})

    return build


def encode(model_folder, text):
    """Slow and plain: one text through the folder's tokenizer and encoder."""
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(model_folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(model_folder / "text_encoder")
    tokens = tokenizer(text, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return encoder(tokens.input_ids).last_hidden_state


def test_views_by_angle():
    azimuth = torch.tensor([0.0, 44, 46, 134, 136, 180, -136, -46, -44, 360, 224, 0])
    elevation = torch.tensor([0.0] * 11 + [61])
    index = Thresholds().view_index(elevation, azimuth)
    names = "front front side side back back back side front front back overhead".split()
    assert [VIEWS[i] for i in index] == names
    assert wrap(torch.tensor([180.0, 190, -190])).tolist() == [-180, -170, 170]


def test_view_words():
    assert view_prompts("p") == ["p, side view", "p, front view", "p, back view", "p, overhead view"]
    assert view_prompts("p", in_front=True)[2] == "backside view of p"


def test_embeddings_are_the_encoders(build, model_folder):
    out = build(negative_prompt="blurry", prompt_back="a tail")()
    assert out.text_embeddings.shape == (1, 32, 32) and out.text_embeddings_vd.shape == (4, 32, 32)
    torch.testing.assert_close(out.text_embeddings, encode(model_folder, "a red ball"))
    torch.testing.assert_close(out.uncond_text_embeddings, encode(model_folder, "blurry"))
    torch.testing.assert_close(out.text_embeddings_vd[2:3], encode(model_folder, "a tail"))
    azimuth, elevation = torch.tensor([0.0, 180.0, 90.0]), torch.tensor([0.0, 0.0, 80.0])
    both = out.get_text_embeddings(elevation, azimuth, torch.ones(3))
    assert both.shape == (6, 32, 32)
    torch.testing.assert_close(both[:3], out.text_embeddings_vd[[1, 2, 3]])
    torch.testing.assert_close(both[3:], out.uncond_text_embeddings.expand(3, -1, -1))
    plain = out.get_text_embeddings(elevation, azimuth, torch.ones(3), view_dependent_prompting=False)
    torch.testing.assert_close(plain[:3], out.text_embeddings.expand(3, -1, -1))


def test_a_cached_prompt_needs_no_encoder(build, monkeypatch):
    first = build()()
    monkeypatch.setattr(ministudio.find(PROCESSOR), "_load_text_model", lambda self: pytest.fail("the encoder was loaded"))
    torch.testing.assert_close(build()().text_embeddings_vd, first.text_embeddings_vd, rtol=0, atol=0)


def test_a_damaged_cache_and_another_model_are_encoded_anew(build, model_folder, tmp_path):
    first = build()()
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    torch.testing.assert_close(build()().text_embeddings, first.text_embeddings)
    before = cache.model_identity(str(model_folder))
    other = shutil.copytree(model_folder, tmp_path / "other")
    assert cache.model_identity(str(other)) != before


def test_an_unwritable_cache_only_warns(build, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(cache, "CACHE_DIR", tmp_path / "file" / "cache")
    monkeypatch.setattr(ministudio.logger, "propagate", True)
    with caplog.at_level(logging.WARNING, "ministudio"):
        assert build()().prompt == "a red ball"
    assert "not cached" in caplog.text


def test_long_prompts_and_unknown_words_are_named(build, model_folder, tmp_path, monkeypatch, caplog):
    folder = shutil.copytree(model_folder, tmp_path / "worded")
    (folder / "vocabulary.txt").write_text("\n".join("a red ball view side front back overhead".split()))
    monkeypatch.setattr(ministudio.logger, "propagate", True)
    with caplog.at_level(logging.WARNING, "ministudio"):
        build("a red ball", pretrained_model_name_or_path=str(folder))
    assert not caplog.messages
    with caplog.at_level(logging.WARNING, "ministudio"):
        build("a red unicorn" + ", a ball" * 40, pretrained_model_name_or_path=str(folder))
    cut, unknown = "\n".join(caplog.messages[:-1]), caplog.messages[-1]
    assert "reads 32 tokens" in cut
    assert "never seen: unicorn. It knows" in unknown and "ball" in unknown


@pytest.mark.parametrize("config, message", [
    ({"prompt": "  "}, "prompt: is empty"), ({"prompt": "lib:a_b"}, "prompt library"),
    ({"use_prompt_debiasing": True}, "use_prompt_debiasing: is not supported"),
    ({"pretrained_model_name_or_path": "models/none"}, "there is no model folder models/none"),
])  # fmt: skip
def test_mistakes(build, config, message):
    with pytest.raises(ConfigError, match=message):
        build(**config)


@pytest.mark.parametrize("damage", ["tokenizer", "text_encoder", "text_encoder/model.safetensors", "text_encoder/config.json"])
def test_a_damaged_model_folder_is_one_line(build, model_folder, tmp_path, damage):
    folder = shutil.copytree(model_folder, tmp_path / "damaged")
    path = folder / damage
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ConfigError, match="^pretrained_model_name_or_path: .*damaged") as caught:
        build(pretrained_model_name_or_path=str(folder))
    assert "\n" not in str(caught.value)


def test_weights_of_the_text_encoder_are_never_made_up(build, model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "partial")
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    gone = next(name for name in tensors if "token_embedding" in name)
    save_file({name: value for name, value in tensors.items() if name != gone}, weights, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="lacks 1 weights, first .*token_embedding"):
        build(pretrained_model_name_or_path=str(folder))


def test_perp_neg_interpolates_and_weighs():
    views = torch.eye(4)[:, None, :]  # one-hot embeddings in the order side, front, back, overhead
    mix = PerpNeg().mix
    front, _, weights = mix(0.0, views)
    assert front[0].tolist() == [0, 1, 0, 0] and weights[0] == pytest.approx(0, abs=1e-3)
    quarter, negatives, weights = mix(45.0, views)
    assert quarter[0].tolist() == [0.5, 0.5, 0, 0] and negatives[:, 0].argmax(-1).tolist() == [FRONT, 0]
    assert weights[0] == weights[1] == pytest.approx(-(4 * 2.718281828 ** (-0.25) - 2.426))
    back, negatives, weights = mix(180.0, views)
    assert back[0].tolist() == [0, 0, 1, 0] and negatives[:, 0].argmax(-1).tolist() == [0, FRONT]
    assert weights == (pytest.approx(-0.394), pytest.approx(-1.967))
    assert mix(-100.0, views)[2] == mix(100.0, views)[2]


def test_perp_neg_layout(build):
    out = build(use_perp_neg=True)()
    elevation, azimuth = torch.tensor([0.0, 80.0]), torch.tensor([180.0, 0.0])
    embeddings, weights = out.get_text_embeddings_perp_neg(elevation, azimuth, torch.ones(2))
    assert embeddings.shape == (8, 32, 32) and weights.shape == (2, 2) and (weights <= 0).all()
    side, front, back, overhead = out.text_embeddings_vd
    torch.testing.assert_close(embeddings[:2], torch.stack([back, overhead]))
    torch.testing.assert_close(embeddings[2:4], out.uncond_text_embeddings.expand(2, -1, -1))
    torch.testing.assert_close(embeddings[4:6], torch.stack([side, front]))
    assert (weights[1] == 0).all()
