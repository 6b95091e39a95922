"""Answers that have ended, kept as guesses at the answers of those who ask about the same again."""

from array import array
from hashlib import blake2b

from server.engine.ngrams import SIZES
from server.engine.sequence import Sequence

MAX_IDS = 2**20
"""Ids of all answers that are kept, four bytes each: some thousands of answers."""
MAX_ANSWERS = 4
"""Kept about one subject: several questions may be asked about a page."""

_Subject = tuple[bytes, bytes]


class PastAnswers:
    """The last answers about each subject, as ids; the subjects longest unused go first.

    The subject is all pictures of the prompt, whatever was asked about them; of a prompt without pictures its ids.
    Sequences with different salts never see each other's.
    """

    def __init__(self, crop_queries: int) -> None:
        """`crop_queries` are the positions in the prompt that a crop's vectors take."""
        self._crop_queries = crop_queries
        self._answers: dict[_Subject, tuple[array[int], ...]] = {}
        """In order of their last use; of one subject the newest answer comes last."""
        self._num_ids = 0

    def find(self, sequence: Sequence) -> list[list[int]]:
        """The answers about the sequence's subject. Each begins with the last ids of its own prompt."""
        subject = _subject(sequence)
        answers = self._answers.pop(subject, ())
        if answers:
            self._answers[subject] = answers
        return [answer.tolist() for answer in answers]

    def keep(self, sequence: Sequence) -> None:
        """A sequence has ended, wherever in its answer."""
        if not sequence.generated_ids:
            return
        subject, answer = _subject(sequence), array("i", [*self._prompt_end(sequence), *sequence.generated_ids])
        before = self._answers.pop(subject, ())
        kept = (*[one for one in before if one != answer][1 - MAX_ANSWERS :], answer)
        self._answers[subject] = kept
        self._num_ids += sum(map(len, kept)) - sum(map(len, before))
        while self._num_ids > MAX_IDS:
            oldest = next(iter(self._answers))
            self._num_ids -= sum(map(len, self._answers.pop(oldest)))

    def check_invariants(self) -> None:
        assert self._num_ids == sum(len(answer) for answers in self._answers.values() for answer in answers) <= MAX_IDS
        assert all(1 <= len(answers) <= MAX_ANSWERS for answers in self._answers.values())

    def _prompt_end(self, sequence: Sequence) -> list[int]:
        """As many ids of text as the longest run that is looked up, so that the answer's first ids are found too."""
        last_crop = sequence.crops[-1].start + self._crop_queries if sequence.crops else 0
        return sequence.prompt_ids[max(last_crop, len(sequence.prompt_ids) - SIZES[0]) :]


def _subject(sequence: Sequence) -> _Subject:
    pictures = b"".join(crop.content_hash for crop in sequence.crops)
    digest = blake2b(pictures or array("i", sequence.prompt_ids).tobytes(), digest_size=16)
    return sequence.cache_salt, digest.digest()
