"""PNG encoding loses nothing, and a damaged file is refused rather than read as another image."""

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from visionrl.frames import decode_png, frame_hash
from visionrl_taskapp.envs.crafter.env import CrafterEnv
from visionrl_taskapp.envs.png import encode_png

frames = arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40).map(lambda s: (*s, 3)))


@given(frame=frames)
def test_any_frame_survives_encoding(frame: np.ndarray) -> None:
    data = encode_png(frame)
    with Image.open(io.BytesIO(data)) as image:
        image.verify()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), frame)
    decoded = decode_png(data)
    np.testing.assert_array_equal(decoded, frame)
    assert decoded.flags.writeable
    assert frame_hash(decoded) == frame_hash(frame)


@pytest.mark.parametrize("size", [18, 64, 288, 512])
@pytest.mark.parametrize("daylight", [0.0, 1.0])
def test_game_frames_survive_encoding(size: int, daylight: float) -> None:
    env = CrafterEnv(image_size=size)
    env.reset(1)
    env._world.daylight = daylight
    frame = env.render()
    np.testing.assert_array_equal(decode_png(encode_png(frame)), frame)


def test_views_that_are_not_contiguous_are_encoded_and_hashed_as_what_they_show() -> None:
    frame = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    view = frame[::2, ::-1]
    np.testing.assert_array_equal(decode_png(encode_png(view)), view)
    assert frame_hash(view) == frame_hash(view.copy())


@pytest.mark.parametrize(
    "frame", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)]
)
def test_what_is_not_a_frame_is_refused(frame: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\]"):
        encode_png(frame)
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\]"):
        frame_hash(frame)


def test_frames_of_the_same_bytes_and_another_shape_have_another_hash() -> None:
    assert frame_hash(np.zeros((2, 8, 3), np.uint8)) != frame_hash(np.zeros((8, 2, 3), np.uint8))


def test_the_hash_is_the_documented_one() -> None:
    # printf '1x1x3:\001\002\003' | sha256sum
    expected = "035809533faec5ce1b741b2ddb5c6d8f166dea871036f37a2b32aede566eced7"
    assert frame_hash(np.array([[[1, 2, 3]]], np.uint8)) == expected


NOISE = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)


@given(cut=st.integers(0, len(encode_png(NOISE)) - 1))
def test_a_cut_off_file_is_refused(cut: int) -> None:
    with pytest.raises(ValueError, match="PNG"):
        decode_png(encode_png(NOISE)[:cut])


@given(at=st.integers(0, len(encode_png(NOISE)) - 1), flip=st.integers(1, 255))
@settings(max_examples=300)
def test_a_changed_byte_is_refused_or_harmless(at: int, flip: int) -> None:
    data = bytearray(encode_png(NOISE))
    data[at] ^= flip
    try:
        decoded = decode_png(bytes(data))
    except ValueError:
        return
    np.testing.assert_array_equal(decoded, NOISE)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "not a PNG"),
        (b"\xff\xd8\xff\xe0 a JPEG", "not a PNG"),
        (encode_png(NOISE) + b"more", "followed by other bytes"),
        (encode_png(NOISE)[:33] + zlib.compress(b"x") + encode_png(NOISE)[-12:], "damaged"),
    ],
)
def test_the_error_says_what_is_wrong(data: bytes, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        decode_png(data)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "I;16"])
def test_a_png_that_is_not_rgb_is_refused_by_name(mode: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (4, 4)).save(file, "PNG")
    with pytest.raises(ValueError, match=f"mode {mode}"):
        decode_png(file.getvalue())
