"""How large the made encoders, data sets and steps are: those of a GPU, and those of a dry run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EncoderSize:
    """A BERT.

    Attributes:
        width, layers, heads, inner: of the transformer.
        words: of the vocabulary.
        kept: its weights are written by `prepare`; else `run` draws them on its first use.
    """

    width: int
    layers: int
    heads: int
    inner: int
    words: int
    kept: bool = False


@dataclass(frozen=True)
class SetSize:
    """A data set of random words.

    Attributes:
        points, test_points, labels: their numbers.
        positives: labels of a point.
        words: of a point's text, at most.
        least_words: of a point's text.
        label_words: of a label's text.
    """

    points: int
    test_points: int
    labels: int
    positives: int
    words: int
    least_words: int
    label_words: int


@dataclass(frozen=True)
class StepSize:
    """A training step whose time is measured.

    Attributes:
        batch: queries.
        micro_batch: texts encoded at once.
        warm, timed: steps before the measured ones, and those, at most.
    """

    batch: int
    micro_batch: int = 1024
    warm: int = 2
    timed: int = 6

    @property
    def points(self) -> int:
        """Training points of one epoch with all these steps."""
        return self.batch * (self.warm + 1 + self.timed + 1)


@dataclass(frozen=True)
class GraphSize:
    """ELIAS: clusters, edges of each (kappa), labels scored (K) and clusters searched."""

    clusters: int
    edges: int
    scored: int
    beam: int


@dataclass(frozen=True)
class LossSize:
    """Queries, labels and dimensions of a loss.

    Attributes:
        chunk: labels that it sees at once; None = as many as it chooses, which are all of few.
    """

    queries: int
    labels: int
    dim: int
    chunk: int | None = None


@dataclass(frozen=True)
class Sizes:
    """All of them.

    Attributes:
        small, check, check_batch: encoder, data set and batch of the checks of correctness.
        distil, bert: encoders of the steps that are timed.
        titles, texts: data sets of the shape of LF-AmazonTitles-131K's labels, a quarter, and of
            amazon-670k.
        dexml, ngame, elias: steps.
        exact, timed: losses beside float64, and beside the full-matrix formula.
    """

    small: EncoderSize
    check: SetSize
    check_batch: int
    distil: EncoderSize
    bert: EncoderSize
    titles: SetSize
    texts: SetSize
    dexml: StepSize
    ngame: StepSize
    elias: StepSize
    graph: GraphSize
    exact: LossSize
    timed: LossSize


_DEXML = StepSize(3000, micro_batch=1500, timed=5)
_NGAME = StepSize(1600, micro_batch=1600)
FULL = Sizes(
    small=EncoderSize(64, 2, 2, 128, words=2000, kept=True),
    check=SetSize(2000, 300, 400, 2, words=9, least_words=4, label_words=3),
    check_batch=128,
    distil=EncoderSize(768, 6, 12, 3072, words=30522),
    bert=EncoderSize(768, 12, 12, 3072, words=30522),
    titles=SetSize(_DEXML.points, 64, 32768, 3, words=30, least_words=30, label_words=30),
    texts=SetSize(_NGAME.points, 64, 670091, 5, words=126, least_words=126, label_words=3),
    dexml=_DEXML,
    ngame=_NGAME,
    elias=StepSize(256),
    graph=GraphSize(8192, edges=1000, scored=2000, beam=20),
    exact=LossSize(64, 5000, 768, chunk=1024),
    timed=LossSize(3000, 131072, 768),
)

_TINY_STEP = StepSize(8, micro_batch=4, warm=1, timed=1)
_TINY_ENCODER = EncoderSize(16, 1, 2, 32, words=200, kept=True)
TINY = Sizes(
    small=_TINY_ENCODER,
    check=SetSize(60, 20, 20, 2, words=9, least_words=4, label_words=3),
    check_batch=16,
    distil=EncoderSize(16, 1, 2, 32, words=200),
    bert=EncoderSize(16, 1, 2, 32, words=200),
    titles=SetSize(_TINY_STEP.points, 8, 24, 3, words=30, least_words=30, label_words=30),
    texts=SetSize(_TINY_STEP.points, 8, 40, 5, words=126, least_words=126, label_words=3),
    dexml=_TINY_STEP,
    ngame=_TINY_STEP,
    elias=_TINY_STEP,
    graph=GraphSize(8, edges=10, scored=20, beam=4),
    exact=LossSize(8, 50, 16, chunk=20),
    timed=LossSize(8, 300, 16),
)
