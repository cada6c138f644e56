"""The tiny model: its tokenizer, its chat template, and that every process builds the same one."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.inference import random_frame
from visionrl.crafter import ACTIONS
from visionrl.job import EnvSettings, TinyModel
from visionrl.tiny.model import actions_of, build_tiny, recipe_digest, visual_tokens
from visionrl.tiny.tokenizer import SPECIAL_TOKENS, TURN_END, WORDS, added_tokens, build_tokenizer
from visionrl.tools import tool_call_text

pytestmark = pytest.mark.vision

ENV = EnvSettings(image_size=144)
TOKENIZER = build_tokenizer(ACTIONS)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(TinyModel(), ENV, tmp_path_factory.mktemp("models"))


def render(model_dir: Path, messages: list[dict[str, Any]], **more: Any) -> str:
    from transformers import AutoTokenizer

    return str(AutoTokenizer.from_pretrained(model_dir).apply_chat_template(messages, tokenize=False, **more))


def test_the_actions_are_crafters() -> None:
    import crafter.constants

    assert list(ACTIONS) == crafter.constants.actions


@given(st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=8))
def test_a_call_is_two_tokens_an_action_and_four_more_and_keeps_every_byte(actions: list[str]) -> None:
    text = tool_call_text(actions) + TURN_END
    ids = TOKENIZER.encode(text).ids
    assert len(ids) == 2 * len(actions) + 4
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == tool_call_text(actions)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        pytest.param({"actionNames": ["left", "right"]}, ["left", "right"], id="names of numbered actions"),
        pytest.param({"actions": {"up": {"id": 1}, "stay": {"id": 0}}}, ["stay", "up"], id="actions of a server"),
        pytest.param({"cells": 5}, list(ACTIONS), id="neither"),
        pytest.param({"actions": 3}, list(ACTIONS), id="the environment refuses it"),
    ],
)
def test_actions_that_the_environments_settings_name_are_the_models(settings: dict[str, Any], names: list[str]) -> None:
    assert list(actions_of(EnvSettings.model_validate({"imageSize": 144, **settings}))) == names


@given(st.text())
def test_any_text_survives(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


def test_words_and_added_tokens_are_one_token_each() -> None:
    for text in (*WORDS, *SPECIAL_TOKENS, *added_tokens(ACTIONS)):
        assert len(TOKENIZER.encode(text).ids) == 1, text


def test_a_prompt_is_qwens_turns_with_the_image_in_its_place(model_dir: Path) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Play Crafter."},
        {"role": "assistant", "content": tool_call_text(["do"])},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Health 9"}]},
    ]
    assert render(model_dir, messages, add_generation_prompt=True) == (
        "<|im_start|>system\nPlay Crafter.<|im_end|>\n"
        f"<|im_start|>assistant\n{tool_call_text(['do'])}<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Health 9<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_tool_calls_and_tool_answers_have_a_form_and_tools_cost_nothing(model_dir: Path) -> None:
    call = {"type": "function", "function": {"name": "interact_many", "arguments": {"actions": ["do", "noop"]}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Play"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": [{"type": "text", "text": "done"}]},
    ]
    text = render(model_dir, messages, tools=[call])
    assert text == (
        "<|im_start|>user\nPlay<|im_end|>\n"
        f"<|im_start|>assistant\n{tool_call_text(['do', 'noop'])}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\ndone\n</tool_response><|im_end|>\n"
    )
    assert text == render(model_dir, messages)


def test_a_part_that_the_model_cannot_read_is_refused(model_dir: Path) -> None:
    with pytest.raises(Exception, match="not video"):
        render(model_dir, [{"role": "user", "content": [{"type": "video"}]}])


@pytest.mark.parametrize(("size", "merge"), [(144, 1), (288, 2), (288, 1)])
def test_a_frame_of_the_environment_is_taken_as_it_is(tmp_path: Path, size: int, merge: Literal[1, 2]) -> None:
    from PIL import Image
    from transformers import AutoImageProcessor

    shape, env = TinyModel(spatial_merge_size=merge), EnvSettings(image_size=size)
    processor = AutoImageProcessor.from_pretrained(build_tiny(shape, env, tmp_path))
    frame = random_frame(0, size)
    taken = processor(images=[Image.fromarray(frame)], return_tensors="pt")
    assert taken["image_grid_thw"].tolist() == [[1, size // 16, size // 16]]
    assert taken["image_grid_thw"].prod().item() // merge**2 == visual_tokens(shape, env)
    first_patch = (taken["pixel_values"][0].reshape(3, 2, 16, 16)[:, 0] * 127.5 + 127.5).round()
    assert (first_patch.permute(1, 2, 0).numpy() == frame[:16, :16]).all()


def test_the_same_recipe_gives_the_same_bytes_in_another_process(model_dir: Path, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from visionrl.job import *; from visionrl.tiny.model import build_tiny;"
        "import torch; torch.manual_seed(99); torch.set_num_threads(1);"
        "print(build_tiny(TinyModel(), EnvSettings(image_size=144), pathlib.Path(sys.argv[1])))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True)
    other = Path(run.stdout.strip())
    assert other.name == model_dir.name
    files = sorted(path.name for path in model_dir.iterdir())
    assert files == sorted(path.name for path in other.iterdir())
    for name in files:
        digests = {hashlib.sha256((folder / name).read_bytes()).hexdigest() for folder in (model_dir, other)}
        assert len(digests) == 1, name


def test_a_directory_that_is_there_is_used_again(model_dir: Path) -> None:
    before = (model_dir / "model.safetensors").stat()
    assert build_tiny(TinyModel(), ENV, model_dir.parent) == model_dir
    assert (model_dir / "model.safetensors").stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("damage", ["flipped", "truncated", "deleted", "added"])
def test_a_directory_that_is_damaged_is_built_again(model_dir: Path, tmp_path: Path, damage: str) -> None:
    copy = shutil.copytree(model_dir, tmp_path / model_dir.name)
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    if damage == "flipped":
        weights.write_bytes(whole[:5000] + bytes([whole[5000] ^ 0x40]) + whole[5001:])
    elif damage == "truncated":
        weights.write_bytes(whole[:1000])
    elif damage == "deleted":
        weights.unlink()
    else:
        (copy / "added_tokens.json").write_text("{}")
    assert build_tiny(TinyModel(), ENV, tmp_path) == copy
    assert weights.read_bytes() == whole
    assert sorted(path.name for path in copy.iterdir()) == sorted(path.name for path in model_dir.iterdir())
    assert [path.name for path in tmp_path.iterdir()] == [copy.name]


def test_building_leaves_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    build_tiny(TinyModel(), ENV, tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_concurrent_builders_end_with_one_complete_directory(tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        built = set(pool.map(lambda _: build_tiny(TinyModel(seed=5), ENV, tmp_path), range(3)))
    assert len(built) == 1
    assert [path.name for path in tmp_path.iterdir()] == [built.pop().name]


def test_another_seed_shape_or_image_size_is_another_model() -> None:
    digests = {
        recipe_digest(shape, env)
        for shape, env in (
            (TinyModel(), ENV),
            (TinyModel(seed=1), ENV),
            (TinyModel(layers=3), ENV),
            (TinyModel(), EnvSettings(image_size=288)),
        )
    }
    assert len(digests) == 4
    assert recipe_digest(TinyModel(), ENV) == recipe_digest(TinyModel(), EnvSettings(image_size=144, length=50))


def test_a_shape_that_cannot_be_built_names_the_field(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="visionHiddenSize"):
        build_tiny(TinyModel(vision_hidden_size=70), ENV, tmp_path)
    with pytest.raises(ValueError, match="imageSize"):
        build_tiny(TinyModel(), EnvSettings(image_size=150), tmp_path)
    assert not list(tmp_path.iterdir())
