import numpy as np
import pytest

from qeff_engine import images
from qeff_engine.errors import InvalidInput
from tests import tiny_llava


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    directory = tmp_path_factory.mktemp("processor")
    tiny_llava.processor().save_pretrained(directory)
    return directory


def test_the_picture_takes_as_many_tokens_as_it_has_rows(snapshot, tmp_path):
    tiny_llava.picture(0).save(tmp_path / "0.png")
    reading = images.Reader(snapshot).read("w1 <image> w2", picture=tmp_path / "0.png")
    word = tiny_llava.WORDS.index
    assert reading.tokens == [word("w1"), *[tiny_llava.IMAGE_TOKEN] * tiny_llava.NUM_ROWS, word("w2")]
    assert reading.pixel_values_CHW.shape == (3, tiny_llava.IMAGE_SIZE, tiny_llava.IMAGE_SIZE)
    assert reading.pixel_values_CHW.dtype == np.float32


def test_a_grey_picture_with_transparency_is_read_in_colour(snapshot, tmp_path):
    tiny_llava.picture(0).convert("LA").save(tmp_path / "0.png")
    reading = images.Reader(snapshot).read("<image>", picture=tmp_path / "0.png")
    assert reading.pixel_values_CHW.shape[0] == 3


@pytest.mark.parametrize("prompt", ["w1", "<image> <image>"])
def test_a_prompt_must_have_one_place_for_its_picture(snapshot, tmp_path, prompt):
    tiny_llava.picture(0).save(tmp_path / "0.png")
    with pytest.raises(InvalidInput, match=r"places for a picture, expected 1.*<image>"):
        images.Reader(snapshot).read(prompt, picture=tmp_path / "0.png")


def test_a_file_that_is_no_picture_is_refused(snapshot, tmp_path):
    (tmp_path / "0.png").write_text("no picture")
    with pytest.raises(InvalidInput, match=r"0\.png is not a picture"):
        images.Reader(snapshot).read("<image>", picture=tmp_path / "0.png")


def test_a_snapshot_without_a_processor_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="no processor for images"):
        images.Reader(tmp_path)


def test_pictures_belong_to_prompts_by_name_and_one_is_for_all(tmp_path):
    for name in ("b.png", "a.png"):
        (tmp_path / name).touch()
    assert [path.name for path in images.paths_of(tmp_path, num_prompts=2)] == ["a.png", "b.png"]
    with pytest.raises(InvalidInput, match="2 pictures for 3 prompts"):
        images.paths_of(tmp_path, num_prompts=3)
    (tmp_path / "b.png").unlink()
    assert [path.name for path in images.paths_of(tmp_path, num_prompts=3)] == ["a.png"] * 3
