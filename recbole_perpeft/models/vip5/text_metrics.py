"""Quality of generated sentences at the level of words: BLEU, ROUGE, and whether the right word is named."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sacrebleu.metrics import BLEU

ROUGE = ("rouge1", "rouge2", "rougeL")


class _Words(Tokenizer):
    """Words as they stand between blanks."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


def text_scores(generated: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """BLEU-4 of all sentences (sacrebleu, no smoothing) and mean F1 of ROUGE (rouge-score), in percent.

    Texts are compared in lower case, word by word. The published code of VIP5 gives BLEU raw strings, and so compares
    letters.

    Args:
        generated: n sentences.
        references: n sentences.

    Returns:
        `BLEU-4`, `ROUGE-1`, `ROUGE-2`, `ROUGE-L`.
    """
    generated, references = ([" ".join(text.lower().split()) for text in texts] for texts in (generated, references))
    bleu = BLEU(tokenize="none", smooth_method="none", force=True).corpus_score(generated, [references])
    scorer = RougeScorer(ROUGE, tokenizer=_Words())
    pairs = Counter(zip(references, generated, strict=True))
    weights = np.array(list(pairs.values()))
    scores = [scorer.score(*pair) for pair in pairs]
    means = {name: 100 * np.average([score[name].fmeasure for score in scores], weights=weights) for name in ROUGE}
    return {
        "BLEU-4": float(bleu.score),
        "ROUGE-1": float(means["rouge1"]),
        "ROUGE-2": float(means["rouge2"]),
        "ROUGE-L": float(means["rougeL"]),
    }


def named_share(generated: Sequence[str], features: Sequence[str]) -> float:
    """Share of sentences that name their word, in percent."""
    named = [f" {word.lower()} " in f" {text.lower()} " for text, word in zip(generated, features, strict=True)]
    return 100 * float(np.mean(named))


def chance_share(features: Sequence[str]) -> float:
    """`named_share` of sentences that name the word of a random other row, in percent."""
    counts = np.array(list(Counter(word.lower() for word in features).values()))
    return 100 * float(((counts / counts.sum()) ** 2).sum())
