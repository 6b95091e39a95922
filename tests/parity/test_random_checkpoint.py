"""Random checkpoints have the official layout, load strictly, and answer differently to different pictures."""

import json
import sys

import pytest
import torch
from rich.progress import Progress
from safetensors.torch import load_file

from benchmarks import random_checkpoint
from benchmarks.random_checkpoint import OFFICIAL_CONFIG, shards, tensor_specs, write_checkpoint
from model.config import load_config, parse_config
from model.prompt import Turn, build_prompt
from model.slicing import cut, plan_slices
from model.tokenizer import Tokenizer
from server.hub import demo_folder, missing_files
from tests.support.driver import Conversation, run
from tests.support.golden import DATA, TINY_V2
from tests.support.pictures import draw_page
from tests.support.runners import load_model, make_runner

SHARD_BYTES = 1_000_000


def make(folder, *, seed=0, **changes):
    config = json.loads((demo_folder() / "config.json").read_text()) | changes
    with Progress(disable=True) as progress:
        write_checkpoint(config, TINY_V2, folder, seed=seed, max_shard_bytes=SHARD_BYTES, progress=progress)
    return folder


def tensors(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_official_sizes_give_the_official_tensors_in_the_official_files():
    official = json.loads((DATA / "official-tensors.json").read_text())

    files = shards(tensor_specs(parse_config(OFFICIAL_CONFIG)), random_checkpoint.OFFICIAL_SHARD_BYTES)

    made = {
        spec.name: {"shape": list(spec.shape), "file": f"model-{number:05d}-of-{len(files):05d}.safetensors"}
        for number, specs in enumerate(files, start=1)
        for spec in specs
    }
    assert made == official["tensors"]


def test_what_is_written_is_complete_and_fills_every_parameter(tmp_path):
    folder = make(tmp_path / "new" / "folder")

    assert missing_files(folder) == []
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    assert all(path.stat().st_size < SHARD_BYTES + 10_000 for path in files)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    found = tensors(folder)
    assert index["weight_map"].keys() == found.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    load_model(folder)


def test_tensor_depends_on_seed_and_name_only(tmp_path):
    whole, shallow, other = (
        tensors(make(tmp_path / "whole")),
        tensors(make(tmp_path / "shallow", num_hidden_layers=1)),
        tensors(make(tmp_path / "other", seed=1)),
    )

    num_layers = load_config(tmp_path / "whole").language.num_layers
    assert len(shallow) == len(whole) - 9 * (num_layers - 1)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in shallow.items())
    assert [name for name, tensor in other.items() if torch.equal(tensor, whole[name])] == ["resampler.pos_embed"]


def test_single_head_for_text_and_scores_when_the_config_ties_them(tmp_path):
    assert "llm.lm_head.weight" not in tensors(make(tmp_path, tie_word_embeddings=True))


def test_random_weights_answer_each_picture_and_each_question_in_their_own_way(tmp_path):
    # Of the tokenizer that `make` copies, and as many vectors a crop as `run` has.
    folder = make(tmp_path / "random", vocab_size=1499, query_num=64)
    config = load_config(folder)
    tokenizer = Tokenizer.from_folder(folder, config.release)

    def ask(text, image):
        plan = plan_slices(*image.size, config.slicing)
        prompt = build_prompt(
            [Turn("user", text, (plan,))], tokenizer, config.resampler.num_queries, specials_in_text=False
        )
        starts = [span.start for span in prompt.crop_spans]
        return Conversation(prompt.token_ids, list(zip(starts, cut(image, plan), strict=True)), max_tokens=12)

    receipt, sign = draw_page(300, 200), draw_page(300, 200, "closed", background="yellow")
    questions = [ask("What is it?", receipt), ask("What is it?", sign), ask("How many?", sign)]
    answers = run(make_runner(folder), questions)

    ids = [tuple(one.token_id for one in answer) for answer in answers]
    assert len(set(ids)) == 3
    assert all(len(set(answer)) > 3 for answer in ids)  # no endless repetition


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), ("{", "Expecting property name"), ("{}", "lacks the key")],
)
def test_wrong_config_ends_with_its_reason(tmp_path, monkeypatch, content, message):
    config = tmp_path / "config.json"
    if content is not None:
        config.write_text(content)
    arguments = ["--config", str(config), "--tokenizer", str(TINY_V2), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["random_checkpoint", *arguments])

    with pytest.raises(SystemExit, match=message):
        random_checkpoint.main()

    assert not (tmp_path / "out").exists()
