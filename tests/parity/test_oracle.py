"""The oracle against the golden data: what the reference did with the tiny checkpoints, in float32.

2e-4 is the golden data's own tolerance: ten times the distance between the reference's float32 and float64 runs, and
a third of what the smallest known mistake (the tanh form of GELU) does to the logits.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.runtime.oracle import Oracle, Picture
from tests.support.driver import golden_crops
from tests.support.golden import TINY_V2, case_names, load_case

TOLERANCE = 2e-4
CPU = torch.device("cpu")


class Recorder(dict[str, list[Tensor]]):
    """Everything the oracle reports, by stage in order of arrival."""

    def __call__(self, stage: str, value: Tensor) -> None:
        self.setdefault(stage, []).append(value)


def distance(ours: Tensor, golden: Tensor) -> float:
    assert ours.shape == golden.shape
    return (ours - golden).abs().max().item()


@pytest.mark.parametrize("name", case_names())
def test_every_stage_and_the_greedy_ids_are_those_of_the_reference(name):
    case = load_case(name)
    golden = {key: torch.from_numpy(value) for key, value in case.tensors.items()}
    oracle = Oracle.load(case.checkpoint, device=CPU, dtype=torch.float32)
    seen = Recorder()

    ids = oracle.generate(
        case.input_ids,
        [Picture(pixels, first) for first, pixels in golden_crops(case)],
        len(case.facts["greedy"]["ids"]),
        seen,
    )

    for index, picture in enumerate(case.facts.get("pictures", ())):
        tower_rows = seen["vision norm"][index][picture["vit_rows"]]
        assert distance(tower_rows, golden[f"vit.{index}.rows"]) < TOLERANCE
        assert distance(seen["resampler"][index], golden[f"resampler.{index}"]) < TOLERANCE
    [embeddings] = seen["prompt embeddings"]
    assert distance(embeddings[case.facts["embed_rows"]], golden["inputs_embeds.rows"]) < TOLERANCE
    num_layers = len(golden["llm.hidden_last"]) - 1
    outputs = [seen[f"language layer {index}"][0] for index in range(num_layers - 1)]
    last_position = torch.stack([stage[-1] for stage in (embeddings, *outputs, seen["language norm"][0])])
    assert distance(last_position, golden["llm.hidden_last"]) < TOLERANCE
    assert distance(seen["logits"][0], golden["logits_last"]) < TOLERANCE
    assert ids == case.facts["greedy"]["ids"]


def test_tensor_that_no_network_has_is_refused_by_name(tmp_path: Path):
    for file in TINY_V2.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shard = tmp_path / "model-00002-of-00002.safetensors"
    tensors = load_file(shard)
    tensors["vpm.blocks.0.attn.gate"] = torch.zeros(1)
    del tensors["vpm.norm.bias"]
    save_file(tensors, shard)

    with pytest.raises(RuntimeError, match=r"(?s)vision\.norm\.bias.*vision\.blocks\.0\.attn\.gate"):
        Oracle.load(tmp_path, device=CPU, dtype=torch.float32)
