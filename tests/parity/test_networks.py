"""Every stage of the networks against the golden data: what the reference did with the tiny checkpoints, in float32.

The tolerance is the golden data's own: the reference's float32 and float64 runs lie within 2e-5 of each other, and the
smallest known mistake (the tanh form of GELU) moves the logits by 7e-4.
"""

import pytest
import torch

from model.runtime.sampler import Sampler, distribution
from model.step import SamplingParams, StateStart
from tests.support.forward import crop_stages, language_stages
from tests.support.golden import case_names, load_case

TOLERANCE = 2e-4

pytestmark = pytest.mark.parametrize("name", case_names())


def assert_close(ours, golden):
    torch.testing.assert_close(ours, golden, rtol=0, atol=TOLERANCE)


def golden_tensors(case):
    return {key: torch.from_numpy(value) for key, value in case.tensors.items()}


def test_stages_of_each_crop(name):
    case = load_case(name)
    golden = golden_tensors(case)
    crops = crop_stages(name)
    assert len(crops) == len(case.facts["pictures"])
    for index, (crop, picture) in enumerate(zip(crops, case.facts["pictures"], strict=True)):
        assert_close(crop.tower[picture["vit_rows"]], golden[f"vit.{index}.rows"])
        assert_close(crop.tower.mean(0), golden[f"vit.{index}.mean"])
        assert_close(crop.tower.norm(dim=1), golden[f"vit.{index}.row_norms"])
        assert_close(crop.vectors, golden[f"resampler.{index}"])


def test_stages_of_the_prompt(name):
    case = load_case(name)
    golden = golden_tensors(case)
    stages = language_stages(name)
    assert_close(stages.embeddings[case.facts["embed_rows"]], golden["inputs_embeds.rows"])
    last_position = [h_TD[-1] for h_TD in (stages.embeddings, *stages.layers[:-1], stages.last)]
    assert_close(torch.stack(last_position), golden["llm.hidden_last"])
    assert_close(stages.logits[-1], golden["logits_last"])


@pytest.mark.parametrize(("mode", "repetition_penalty"), [("greedy", 1.0), ("greedy_rp105", 1.05)])
def test_best_scores_of_each_generated_token(name, mode, repetition_penalty):
    facts = load_case(name).facts[mode]
    stages = language_stages(name, facts["ids"][:-1])
    logits_RV = stages.logits[-len(facts["ids"]) :]
    params = SamplingParams(repetition_penalty=repetition_penalty)
    sampler = Sampler(num_slots=1, vocab_size=logits_RV.shape[1], start_id=1, device=torch.device("cpu"))
    for step, (logits_V, expected) in enumerate(zip(logits_RV, facts["steps"], strict=True)):
        sampler.start(StateStart(0, params, tuple(facts["ids"][:step])))
        values, ids = sampler.penalised(logits_V[None], [0])[0].topk(len(expected["top"]))
        assert [int(i) for i in ids] == [token_id for token_id, _ in expected["top"]]
        assert_close(values, torch.tensor([score for _, score in expected["top"]]))
        assert sampler.draw(logits_V[None], [0], [0.0])[0].token_id == expected["id"]


def test_candidates_of_sampling_and_their_probabilities(name):
    case = load_case(name)
    settings = case.facts["settings"]["sampling"]
    params = SamplingParams(
        temperature=settings["temperature"],
        top_p=settings["top_p"],
        top_k=settings["top_k"],
        repetition_penalty=settings.get("repetition_penalty", 1.0),
    )
    for expected in case.facts["sampling"]:
        logits_RV = language_stages(name, expected["prefix"]).logits[-1:]
        sampler = Sampler(num_slots=1, vocab_size=logits_RV.shape[1], start_id=1, device=torch.device("cpu"))
        sampler.start(StateStart(0, params, tuple(expected["prefix"])))
        ids_RK, probabilities_RK = distribution(sampler.penalised(logits_RV, [0]), [params])
        kept = probabilities_RK[0] > 0
        ours = dict(zip(ids_RK[0][kept].tolist(), probabilities_RK[0][kept].tolist(), strict=True))
        assert ours == pytest.approx(dict(zip(expected["ids"], expected["probs"], strict=True)), abs=TOLERANCE)
