"""The loader: every tensor in its place whatever the layout of the files, and a clear refusal of anything else."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import parse_config
from model.formats import packing_of
from model.nn.attention.reference import reference_attention
from model.nn.linear import PackedWeight
from model.nn.quant import packed_weight
from model.runtime import checkpoint
from model.runtime.checkpoint import empty_model
from model.runtime.errors import CheckpointError
from model.runtime.safetensors_file import StoredTensor, read_tensor_list
from model.runtime.weight_names import weight_names
from tests.support.golden import DATA, TINY_V1, TINY_V2
from tests.support.runners import load_model


def stored_tensors(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def single_file_copy(source, folder, change=lambda tensors: None, config=None):
    """The checkpoint as one file, its tensors changed, its config.json updated."""
    tensors = stored_tensors(source)
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    raw = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | (config or {})))
    return folder


def assert_holds(model, tensors):
    """Each stored tensor lies where the name table says, and nothing else is left in any parameter."""
    names = weight_names(model.config)
    assert names.keys() == tensors.keys()
    filled = dict.fromkeys(dict(model.named_parameters()), 0)
    for name, target in names.items():
        parameter = model.get_parameter(target.parameter)
        part = parameter if target.rows is None else parameter[slice(*target.rows)]
        assert torch.equal(part, tensors[name].to(parameter.dtype)), name
        filled[target.parameter] += part.numel()
    assert filled == {name: parameter.numel() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("folder", [TINY_V2, TINY_V1], ids=["2.0", "1.0"])
@pytest.mark.parametrize("compute", ["fp32", "bf16", "fp16"])
def test_every_tensor_of_a_checkpoint_in_two_files(folder, compute):
    assert_holds(load_model(folder, compute=compute), stored_tensors(folder))


def test_tensors_larger_than_the_buffer_arrive_in_pieces(monkeypatch):
    monkeypatch.setattr(checkpoint, "_BUFFER_BYTES", 1000)
    assert_holds(load_model(TINY_V1), stored_tensors(TINY_V1))


@pytest.mark.parametrize("weights", ["int8", "int4", "fp8"])
def test_packed_tensors_are_those_of_the_file_packed_whole(monkeypatch, weights):
    """Fused ones, too, and however small the pieces they are read in."""
    monkeypatch.setattr(checkpoint, "_BUFFER_BYTES", 5000)
    model = load_model(TINY_V2, weights=weights)
    tensors = stored_tensors(TINY_V2)
    num_packed = 0
    for parameter in {target.parameter for target in weight_names(model.config).values()}:
        module, _, name = parameter.rpartition(".")
        weight = getattr(model.get_submodule(module), name)
        if isinstance(weight, PackedWeight):
            num_packed += 1
            whole = torch.cat([tensors[n] for n, t in weight_names(model.config).items() if t.parameter == parameter])
            packing = packing_of(weights, "layers" if parameter.startswith("language.layers") else "embedding")
            wanted = packed_weight(packing, *whole.shape, dtype=torch.float32, device=torch.device("cpu"))
            wanted.fill(0, whole)
            assert torch.equal(weight.values.view(torch.uint8), wanted.values.view(torch.uint8)), parameter
            assert torch.equal(weight.scales, wanted.scales), parameter
    # Embedding, head, four products in each of three layers and three blocks; neither norms nor the resampler.
    assert num_packed == 2 + 4 * 3 + 4 * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_single_file_stored_in_another_format(tmp_path, dtype):
    def convert(tensors):
        tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()})

    folder = single_file_copy(TINY_V1, tmp_path, convert)
    assert_holds(load_model(folder), stored_tensors(folder))


def test_progress_ends_at_the_total():
    seen = []
    load_model(TINY_V1, progress=lambda done, total: seen.append((done, total)))
    total = sum(tensor.nbytes for tensor in stored_tensors(TINY_V1).values())
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_old_rotary_buffers_are_ignored(tmp_path):
    def add(tensors):
        tensors["llm.model.layers.2.self_attn.rotary_emb.inv_freq"] = torch.zeros(32)

    load_model(single_file_copy(TINY_V1, tmp_path, add))


def test_embedding_is_the_head_where_the_file_of_release_1_has_none(tmp_path):
    model = load_model(single_file_copy(TINY_V1, tmp_path, config={"tie_word_embeddings": False}))
    assert model.language.head is None


def test_head_in_the_file_is_used_even_when_the_configuration_ties_it(tmp_path):
    head = torch.ones(1499, 128)
    model = load_model(
        single_file_copy(TINY_V1, tmp_path, lambda tensors: tensors.update({"llm.lm_head.weight": head}))
    )
    assert torch.equal(model.language.head, head)


def test_head_missing_from_release_2_is_an_error(tmp_path):
    folder = single_file_copy(TINY_V2, tmp_path, lambda tensors: tensors.pop("llm.lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"\(1\): llm\.lm_head\.weight is missing"):
        load_model(folder)


def test_everything_wrong_is_listed_at_once(tmp_path):
    def spoil(tensors):
        del tensors["vpm.norm.bias"], tensors["llm.model.layers.1.self_attn.k_proj.weight"]
        tensors["vpm.attn_pool.latent"] = torch.zeros(1)
        tensors["resampler.query"] = torch.zeros(64, 64)

    with pytest.raises(CheckpointError) as caught:
        load_model(single_file_copy(TINY_V1, tmp_path, spoil))
    text = str(caught.value)
    assert "(4)" in text
    assert "vpm.norm.bias is missing" in text
    assert "llm.model.layers.1.self_attn.k_proj.weight is missing" in text
    assert "vpm.attn_pool.latent is not expected" in text
    assert "resampler.query has the shape [64, 64], expected [64, 128]" in text


def test_official_checkpoint_fills_the_official_model_exactly():
    config = parse_config(json.loads((DATA / "config-official.json").read_text()))
    official = json.loads((DATA / "official-tensors.json").read_text())
    stored = {
        name: StoredTensor(
            name, Path(entry["file"]), torch.bfloat16, tuple(entry["shape"]), 0, 2 * math.prod(entry["shape"])
        )
        for name, entry in official["tensors"].items()
    }
    model = empty_model(config, stored, reference_attention)
    assert len(stored) == len(weight_names(config)) == 694
    assert sum(parameter.numel() for parameter in model.parameters()) == official["parameters"] == 3_434_965_792


# ---- damaged files ----


def write_container(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(shape, first, last, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def test_tensors_in_order_of_their_offset(tmp_path):
    header = {"__metadata__": {"format": "pt"}, "b": entry([2], 0, 8), "a": entry([], 8, 10, "BF16")}
    path = write_container(tmp_path / "x", header, bytes(10))
    first, second = read_tensor_list(path)
    assert (first.name, first.shape, first.num_bytes) == ("b", (2,), 8)
    assert (second.name, second.shape, second.offset) == ("a", (), first.offset + 8)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{", b"", "not valid JSON"),
        (b"[]", b"", "not a JSON object"),
        (b'{"a":' * 100_000, b"", "not valid JSON"),
        (b'{"a": 1, "a": 2}', b"", "twice"),
        ({"a": []}, b"", "malformed"),
        ({"a": {"dtype": "F32", "shape": [1]}}, b"", "malformed"),
        ({"a": entry([1], 0, 8, "I64")}, bytes(8), "I64"),
        ({"a": entry([-1, -1], 0, 4)}, bytes(4), "shape"),
        ({"a": entry([True], 0, 4)}, bytes(4), "shape"),
        ({"a": entry([1], 0, 8)}, bytes(8), "offsets"),
        ({"a": entry([1], -4, 0)}, bytes(4), "offsets"),
        ({"a": entry([1], 4, 8)}, bytes(8), "begins"),
        ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, bytes(4), "begins"),
        ({"a": entry([2], 0, 8)}, bytes(7), "the file has"),
        ({"a": entry([1], 0, 4)}, bytes(5), "the file has"),
    ],
)
def test_malformed_header_is_refused_with_the_name_of_the_file(tmp_path, header, data, message):
    path = write_container(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_tensor_list(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x01", (2**63).to_bytes(8, "little") + b"{}", (3).to_bytes(8, "little")])
def test_header_that_does_not_fit_into_the_file(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not fit"):
        read_tensor_list(path)


@pytest.fixture
def copy(tmp_path):
    """A copy of a checkpoint in two files, to be damaged."""
    return Path(shutil.copytree(TINY_V1, tmp_path / "copy"))


def change_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_truncated_file_is_refused_before_anything_is_loaded(copy):
    path = copy / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"00002-of-00002.*the file has"):
        load_model(copy)


def test_file_that_the_index_names_is_missing(copy):
    (copy / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.safetensors cannot be read: No such file"):
        load_model(copy)


def test_index_and_files_disagree(copy):
    change_index(copy, lambda weight_map: weight_map.pop("vpm.pos_embed"))
    with pytest.raises(CheckpointError, match=r"disagree: vpm\.pos_embed in model-0000"):
        load_model(copy)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/hostname", 7])
def test_index_may_name_files_beside_it_only(copy, file):
    change_index(copy, lambda weight_map: weight_map.update({"vpm.pos_embed": file}))
    with pytest.raises(CheckpointError, match="not a plain file name"):
        load_model(copy)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": []}'])
def test_malformed_index(copy, text):
    (copy / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        load_model(copy)


def test_folder_without_weights(copy):
    for path in copy.glob("model*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="neither"):
        load_model(copy)


def test_file_that_shrinks_while_it_is_read(copy, monkeypatch):
    path = copy / "model-00002-of-00002.safetensors"
    read_list = checkpoint.list_checkpoint

    def shrink(folder):
        stored = read_list(folder)
        path.write_bytes(path.read_bytes()[:-1])
        return stored

    monkeypatch.setattr("model.runtime.loading.list_checkpoint", shrink)
    with pytest.raises(CheckpointError, match="ends inside"):
        load_model(copy)
