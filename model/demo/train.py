"""Trains the demo.

    python -m model.demo.train --out build/demo

Goes on from `OUT/state.pt` when there is one, else begins with random weights, or those of the checkpoint that
`--start-from` names. Writes a line of `OUT/log.jsonl` every few steps, and the checkpoint, as the server loads it, to
`OUT/checkpoint`. Stop it at any time.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from model.demo.export import export
from model.demo.fonts import DEFAULT_FOLDER
from model.demo.lessons import NO_LABEL, Lesson, Lessons
from model.demo.muon import Muon
from model.demo.net import Student
from model.demo.recipe import Recipe, model_config
from model.demo.targets import in_reading_order
from model.nn.linear import SLOW_ON_CPU
from model.runtime.loading import OpenedModel
from model.tokenizer import Tokenizer

_LOG_EVERY = 25
_SAVE_EVERY = 100
_MAX_GRADIENT = 1.0
_WHERE_WEIGHT = 8.0
"""Of telling places, next to telling what is there: its error is a mean over many waves."""
_AVERAGE_OVER = 400
"""Steps, about, over which the exported weights are averaged."""

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Plan:
    """Where and with what a run works."""

    out: Path
    tokenizer: Path
    fonts: Path
    device: torch.device
    workers: int
    compiled: bool
    start_from: Path | None
    """A checkpoint with the sizes of the recipe, whose queries have been aimed; None begins with random weights."""
    precision: torch.dtype
    """Of products; weights, norms and losses stay in float32."""


class Trainer:
    """A student, its optimizers and the average of its weights."""

    def __init__(self, recipe: Recipe, plan: Plan) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.plan = plan
        self.config = model_config(Tokenizer.from_folder(plan.tokenizer, "2.0").vocab_size)
        self.student = Student(self.config)
        self._aim_step = recipe.aim_step if plan.start_from is None else None
        if plan.start_from is not None:
            opened = OpenedModel.from_folder(plan.start_from)
            begun = opened.load(device=torch.device("cpu"), weights="fp32", compute="fp32", progress=_silent)
            self.student.model.load_state_dict(begun.state_dict())
        self.student.to(plan.device)
        self.average = {name: value.clone() for name, value in self.student.model.state_dict().items()}
        self.optimizers = _optimizers(self.student, recipe, plan.precision)
        self.step = 0
        self.seconds = 0.0
        if self._state_path.exists():
            self._load()
        if plan.compiled:
            self.student.compile_blocks()

    @property
    def _state_path(self) -> Path:
        return self.plan.out / "state.pt"

    def train(self) -> None:
        """Everything that is left of the recipe."""
        lessons = Lessons(self.recipe, self.config, self.plan.tokenizer, self.plan.fonts)
        left = range(self.step, len(lessons))
        batches = DataLoader(
            lessons,
            batch_size=None,
            sampler=left,
            num_workers=self.plan.workers,
            prefetch_factor=6 if self.plan.workers else None,
            collate_fn=_unchanged,
        )
        means = Means()
        begun = time.monotonic() - self.seconds
        with _progress() as bar:
            task = bar.add_task("training", total=len(lessons), completed=self.step, loss=math.nan)
            for lesson in batches:
                means.add(self._learn(lesson))
                self.step += 1
                self.seconds = time.monotonic() - begun
                bar.update(task, completed=self.step, loss=means.now.get("loss", math.nan))
                last = self.step == len(lessons)
                if self.step % _LOG_EVERY == 0 or last:
                    self._log(means.take())
                if self.step % _SAVE_EVERY == 0 or last:
                    self._save()

    def _learn(self, lesson: Lesson) -> Figures:
        if self.step == self._aim_step:
            self.student.aim_queries()
            self.average |= {name: value.clone() for name, value in self.student.model.state_dict().items()}
        rate = self.recipe.rate(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["full_lr"] * rate
        with self._precision():
            loss, figures = self._loss(lesson)
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships no type for it
        nn.utils.clip_grad_norm_(self.student.parameters(), _MAX_GRADIENT)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        share = 1 / min(_AVERAGE_OVER, self.step + 1)
        with torch.no_grad():
            for name, value in self.student.model.state_dict().items():
                self.average[name].lerp_(value, share)
        return figures | {"loss": float(loss.detach())}

    @contextmanager
    def _precision(self) -> Iterator[None]:
        device = self.plan.device.type
        # On a CPU the gradient of torch's fused attention takes longer than everything else together.
        attention = [SDPBackend.MATH] if device == "cpu" else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
        with sdpa_kernel(attention), torch.autocast(device, self.plan.precision, self.plan.precision != torch.float32):
            yield

    def _loss(self, lesson: Lesson) -> tuple[Tensor, Figures]:
        device = self.plan.device
        patch = self.config.vision.patch_size
        loss = torch.zeros((), device=device)
        vectors = []
        figures: Figures = {}
        together = (*lesson.groups, *lesson.pages)
        num_crops = sum(len(group.pixels) for group in together)
        asked = lesson.ids.size > 0
        aimed = self._aim_step is None or self.step >= self._aim_step
        sees = self.recipe.learns_to_see(self.step)
        for group in together:
            _, height, width, _ = group.pixels.shape
            grid = height // patch, width // patch
            with torch.set_grad_enabled(sees):
                seen = self.student.see(torch.from_numpy(group.pixels).to(device))
                resampled = self.student.resample(seen, *grid) if aimed else None
            if asked:
                assert resampled is not None
                vectors.append(resampled.flatten(0, 1))
            if sees:
                where_loss = self.student.where_loss(seen, *grid)
                if resampled is None:
                    dense_loss, shares = self.student.patch_head(seen, group.patches)
                else:
                    in_order = in_reading_order(group.patches, self.config.resampler.num_queries)
                    dense_loss, shares = self.student.query_head(resampled, in_order)
                dense_loss = dense_loss + _WHERE_WEIGHT * where_loss
                loss = loss + len(group.pixels) / num_crops * dense_loss
                figures |= shares | {"dense_loss": float(dense_loss.detach()), "where_loss": float(where_loss.detach())}
        if not asked:
            return loss, figures
        answer_loss, answer_figures = self._answer_loss(lesson, vectors[: len(lesson.groups)])
        return loss + answer_loss, figures | answer_figures | {"answer_loss": float(answer_loss.detach())}

    def _answer_loss(self, lesson: Lesson, vectors: list[Tensor]) -> tuple[Tensor, Figures]:
        device = self.plan.device
        labels = torch.from_numpy(lesson.labels).flatten()
        wanted = torch.nonzero(labels != NO_LABEL).flatten()
        read = torch.from_numpy(lesson.is_read).flatten()[wanted].to(device)
        labels = labels[wanted].to(device)
        width = self.config.language.hidden_size
        together = torch.cat(vectors) if vectors else torch.zeros(0, width, device=device)
        tokens = torch.from_numpy(lesson.image_tokens).to(device)
        scores = self.student.scores(torch.from_numpy(lesson.ids).to(device), tokens, together, wanted.to(device))
        right = (scores.argmax(-1) == labels).float()
        return F.cross_entropy(scores, labels), {
            "read": float(right[read].mean()),
            "other": float(right[~read].mean()),
        }

    def _log(self, figures: Figures) -> None:
        line = {"step": self.step, "seconds": round(self.seconds)} | {k: round(v, 4) for k, v in figures.items()}
        with (self.plan.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _save(self) -> None:
        state: dict[str, Any] = {
            "step": self.step,
            "seconds": self.seconds,
            "student": self.student.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        unfinished = self._state_path.with_suffix(".part")
        torch.save(state, unfinished)
        unfinished.replace(self._state_path)
        export(self.average, self.config, self.plan.tokenizer, self.plan.out / "checkpoint")

    def _load(self) -> None:
        state = torch.load(self._state_path, map_location=self.plan.device, weights_only=True)
        self.step, self.seconds = state["step"], state["seconds"]
        self.student.load_state_dict(state["student"])
        self.average = state["average"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
            # The rates are the recipe's, which may have been changed since.
        for optimizer, rate in zip(self.optimizers, (self.recipe.muon_lr, self.recipe.adam_lr), strict=True):
            for group in optimizer.param_groups:
                group["full_lr"] = rate


class Means:
    """Running means of the figures of the last hundred steps or so."""

    def __init__(self) -> None:
        self.now: Figures = {}
        self._news: set[str] = set()

    def add(self, figures: Figures) -> None:
        for name, value in figures.items():
            if not math.isnan(value):
                before = self.now.get(name, value)
                self.now[name] = before + 0.03 * (value - before)
                self._news.add(name)

    def take(self) -> Figures:
        """Those that steps since the last call have had."""
        taken = {name: value for name, value in self.now.items() if name in self._news}
        self._news.clear()
        return taken


def _optimizers(student: Student, recipe: Recipe, precision: torch.dtype) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the hidden layers, AdamW for the rest."""
    hidden = ("vision.blocks", "language.layers", "resampler.")
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in student.model.named_parameters():
        if parameter.requires_grad:
            is_matrix = parameter.dim() == 2 and name.startswith(hidden) and name.endswith((".weight", "proj"))
            (matrices if is_matrix else rest).append(parameter)
    rest += student.patch_head.parameters()
    rest += student.query_head.parameters()
    rest += student.where_head.parameters()
    adam = torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    muon = Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay, precision=precision)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
    return [muon, adam]


def _silent(_done_bytes: int, _total_bytes: int) -> None:
    pass


def _unchanged(lesson: Any) -> Any:
    return lesson


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; one with a state is gone on with")
    parser.add_argument("--tokenizer", type=Path, default=Path("model/demo/checkpoint"), help="folder with its files")
    parser.add_argument("--fonts", type=Path, default=DEFAULT_FOLDER, help="folder with the typefaces")
    parser.add_argument("--start-from", type=Path, help="checkpoint to begin with instead of random weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32" if torch.bfloat16 in SLOW_ON_CPU else "bf16",
        help="of products; the default is bf16 where this processor multiplies it",
    )
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    for field in fields(Recipe):
        kind = type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    arguments = parser.parse_args()
    recipe = Recipe(**{field.name: getattr(arguments, field.name) for field in fields(Recipe)})
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n", encoding="utf-8")
    device = torch.device(arguments.device)
    precision = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    plan = Plan(
        arguments.out,
        arguments.tokenizer,
        arguments.fonts,
        device,
        arguments.workers,
        arguments.compile,
        arguments.start_from,
        precision,
    )
    Trainer(recipe, plan).train()


if __name__ == "__main__":
    main()
