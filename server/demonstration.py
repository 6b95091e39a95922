"""What the bundled demo says of itself: that it is a demonstration, what it can do, and how well it did in its exam."""

from pathlib import Path

import msgspec

FILE_NAME = "demonstration.json"


class Accuracy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Marks of one subject of the demo's exam, as shares."""

    subject: str
    measure: str
    """What the shares are of: "right answers" or "wrong characters"."""
    english: float
    chinese: float


class Demonstration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Contents of the file `demonstration.json` beside a checkpoint's weights."""

    note: str
    skills: tuple[str, ...]
    accuracy: tuple[Accuracy, ...]

    def summary(self) -> str:
        """The note, the skills and the marks in a few lines for a terminal."""
        marks = "; ".join(
            f"{row.subject} {row.english:.0%} in English and {row.chinese:.0%} in Chinese ({row.measure})"
            for row in self.accuracy
        )
        return f"{self.note} It was trained to {', '.join(self.skills)}. Measured: {marks}."


def load_demonstration(folder: Path) -> Demonstration | None:
    """The checkpoint's own words about itself; None for a checkpoint without them.

    Raises:
        msgspec.ValidationError: the file is not of this form.
    """
    path = folder / FILE_NAME
    return msgspec.json.decode(path.read_bytes(), type=Demonstration) if path.is_file() else None
