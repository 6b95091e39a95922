"""What the training computes is what is served, and a run that was stopped goes on as if it had not been."""

import json
from dataclasses import replace

import pytest
import torch

from model.demo import lessons, train
from model.demo.export import export
from model.demo.fonts import PILLOW_DEFAULT, Fonts
from model.demo.lessons import NO_LABEL, Lessons
from model.demo.muon import Muon
from model.demo.net import Student
from model.demo.recipe import Recipe, model_config
from model.formats import BLOCK_TOKENS
from model.runtime.kv_cache import allocate_cache
from model.runtime.packing import pack_rows
from model.step import SequenceRow
from model.tokenizer import Tokenizer
from server.hub import demo_folder
from tests.support.runners import load_model

RECIPE = Recipe(
    aim_step=1,
    see_steps=2,
    answer_steps=3,
    see_crops=2,
    answer_crops=2,
    page_crops=2,
    tokens_per_step=200,
    warmup_steps=1,
)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fonts_everywhere(monkeypatch):
    monkeypatch.setattr(lessons, "find_fonts", lambda _folder: Fonts((PILLOW_DEFAULT,), (PILLOW_DEFAULT,)))


def plan(folder):
    folder.mkdir(exist_ok=True)
    return train.Plan(
        folder, demo_folder(), folder, CPU, workers=0, compiled=False, start_from=None, precision=torch.float32
    )


@pytest.mark.parametrize("number", [2, 4])
def test_scores_are_those_of_the_served_networks(tmp_path, number):
    tokenizer = Tokenizer.from_folder(demo_folder(), "2.0")
    config = model_config(tokenizer.vocab_size)
    torch.manual_seed(number)
    export(Student(config).model.state_dict(), config, demo_folder(), tmp_path)
    served = load_model(tmp_path)
    student = Student(config)
    student.model.load_state_dict(served.state_dict())

    lesson = Lessons(RECIPE, config, demo_folder(), tmp_path)[number]
    patch = config.vision.patch_size
    with torch.inference_mode():
        trained_vectors, served_vectors = [], []
        for group in lesson.groups:
            pixels = torch.from_numpy(group.pixels)
            rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
            trained_vectors.append(student.resample(student.see(pixels), rows, columns).flatten(0, 1))
            x = served.vision.run_blocks(served.vision.embed(pixels), 0, config.vision.num_blocks)
            served_vectors.append(served.finish_crops(x, rows, columns).flatten(0, 1))
        ids, tokens = torch.from_numpy(lesson.ids), torch.from_numpy(lesson.image_tokens)
        wanted = torch.nonzero(torch.from_numpy(lesson.labels).flatten() != NO_LABEL).flatten()
        scores = student.scores(ids, tokens, torch.cat(trained_vectors), wanted)
        expected = serve(served, ids, tokens, torch.cat(served_vectors))[wanted]
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


def serve(model, ids, image_tokens, vectors):
    """The scores after every token of the batch by the served path: packed rows and a paged cache."""
    num_rows, length = ids.shape
    blocks = -(-length // BLOCK_TOKENS)
    rows = [
        SequenceRow(row, ids[row].tolist(), 0, range(row * blocks, (row + 1) * blocks), (), None)
        for row in range(num_rows)
    ]
    packed = pack_rows(rows, num_queries=model.config.resampler.num_queries, max_group_keys=0, device=CPU)
    h = model.embed(packed.token_ids, image_tokens, vectors)
    caches = allocate_cache(model.config.language, num_rows * blocks, "fp32", CPU).layers
    return model.language.logits(model.language(h, packed.positions, caches, packed.plan))


def test_a_stopped_run_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_SAVE_EVERY", 1)
    whole = train.Trainer(RECIPE, plan(tmp_path / "whole"))
    whole.train()

    class Stop(Exception):
        pass

    learn = train.Trainer._learn

    def learn_three(self, lesson):
        if self.step == 3:
            raise Stop
        return learn(self, lesson)

    with monkeypatch.context() as stopping:
        stopping.setattr(train.Trainer, "_learn", learn_three)
        with pytest.raises(Stop):
            train.Trainer(RECIPE, plan(tmp_path / "stopped")).train()
    resumed = train.Trainer(RECIPE, plan(tmp_path / "stopped"))
    assert resumed.step == 3
    resumed.train()
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, resumed.student.state_dict()[name]), name
    for name, value in whole.average.items():
        assert torch.equal(value, resumed.average[name]), name
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 5
    assert {"loss", "characters", "read", "other"} <= set(log[-1])


def test_training_begins_with_the_weights_of_a_checkpoint_and_leaves_its_queries_aimed(tmp_path):
    recipe = replace(RECIPE, see_steps=0, answer_steps=2, joint_steps=2)
    trainer = train.Trainer(recipe, replace(plan(tmp_path), start_from=demo_folder()))
    served = load_model(demo_folder()).state_dict()
    for name, value in trainer.student.model.state_dict().items():
        assert torch.equal(value, served[name]), name
    trainer.train()
    moved = (trainer.student.model.resampler.position - served["resampler.position"]).abs().max()
    assert 0 < moved < 0.01


def test_the_exported_checkpoint_is_the_average(tmp_path):
    trainer = train.Trainer(RECIPE, plan(tmp_path))
    trainer.train()
    served = load_model(tmp_path / "checkpoint", compute="bf16")
    for name, value in served.state_dict().items():
        assert torch.equal(value, trainer.average[name].to(torch.bfloat16)), name


def test_learning_lowers_the_loss_of_what_is_shown_again_and_again(tmp_path):
    trainer = train.Trainer(Recipe(aim_step=0, see_steps=0, answer_steps=40, warmup_steps=1), plan(tmp_path))
    small = Recipe(aim_step=0, see_steps=0, answer_steps=2, answer_crops=2, page_crops=2, tokens_per_step=200)
    lesson = Lessons(small, trainer.config, demo_folder(), tmp_path)[1]
    losses = []
    for _ in range(12):
        losses.append(trainer._learn(lesson)["loss"])
        trainer.step += 1
    assert losses[-1] < 0.7 * losses[0]


def test_muon_steps_are_orthogonal():
    torch.manual_seed(0)
    for shape in ((24, 16), (16, 24), (16, 16)):
        weight = torch.nn.Parameter(torch.zeros(shape))
        weight.grad = torch.randn(shape)
        Muon([weight], lr=1.0).step()
        # 0.2 sqrt(max(rows, columns)) times a matrix of singular values near 1.
        values = torch.linalg.svdvals(weight.detach()) / (0.2 * max(shape) ** 0.5)
        assert values.min() > 0.3
        assert values.max() < 1.3
        assert values.median() > 0.65
