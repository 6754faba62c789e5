"""Tokenizers: the one of a checkpoint, or a WordPiece vocabulary trained on the mixture's own texts.

A vocabulary of the shipped text mixtures is trained in about a second, so it is not kept on disk: it is a function
of the training texts, `vocab_size` and `lowercase`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.errors import UserError, first_line

PAD_MULTIPLE = 8
"""Texts are padded to a multiple of this: tensor cores like it, and fewer shapes means fewer recompilations."""

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WHERE = "a local folder needs tokenizer.json beside the weights; or name another one: mixture.tokenizer"

_ALPHABET = 1000
"""Characters a vocabulary has at most, the most frequent ones: rarer ones are unknown."""

_CHUNK = 1000
"""Texts encoded at a time: what the library keeps per text is much larger than its token numbers."""


@dataclass(frozen=True)
class Encoded:
    """A text as token numbers; `words` says which word a token belongs to (None: none), for texts given as words."""

    ids: list[int]
    words: list[int | None] | None = None


class TextTokenizer(ABC):
    """Texts → token numbers, with the special tokens of its model, cut to `max_length`.

    Attributes:
        vocab_size: token numbers are below this. pad_token_id: fills up short texts.
        vocabulary: token → number.
    """

    vocab_size: int
    pad_token_id: int
    max_length: int
    vocabulary: dict[str, int]

    def encode(self, texts: Sequence[Any], seconds: Sequence[str] | None = None) -> Iterator[Encoded]:
        """Encode texts, pairs of texts (the longer one is cut first), or texts given as lists of words."""
        for start in range(0, len(texts), _CHUNK):
            part = slice(start, start + _CHUNK)
            yield from self._encode(list(texts[part]), None if seconds is None else list(seconds[part]))

    @abstractmethod
    def _encode(self, texts: list[Any], seconds: list[str] | None) -> Iterable[Encoded]: ...

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write it as `AutoTokenizer.from_pretrained` reads it."""


class WordPiece(TextTokenizer):
    """BERT's tokenizer (Wu et al. 2016, arXiv 1609.08144) with a vocabulary of its own.

    A text becomes [CLS] a [SEP], a pair [CLS] a [SEP] b [SEP]. The vocabulary is a function of the multiset of texts
    and the two settings: neither their order nor threads nor the process change it.

    Args:
        texts: to learn from.
        vocab_size: at most so many tokens, but at least all characters; fewer where the texts have no more.
        lowercase: fold case and accents.
        max_length: longest text in tokens.
    """

    def __init__(self, texts: Iterable[str], *, vocab_size: int, lowercase: bool, max_length: int) -> None:
        self._make(train_vocabulary(list(texts), vocab_size, lowercase), lowercase, max_length)

    @classmethod
    def of(cls, tokens: Sequence[str], *, lowercase: bool, max_length: int) -> WordPiece:
        """One whose vocabulary was learned before: its tokens by their numbers."""
        made = cls.__new__(cls)
        made._make({token: number for number, token in enumerate(tokens)}, lowercase, max_length)
        return made

    def _make(self, vocabulary: dict[str, int], lowercase: bool, max_length: int) -> None:
        from tokenizers import Tokenizer, models, processors

        normalizer, splitter = _bert_words(lowercase)
        # Special tokens are in the vocabulary but not "added tokens": a text that says [SEP] is only a text.
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
        cls, sep = ((token, vocabulary[token]) for token in ("[CLS]", "[SEP]"))
        tokenizer.post_processor = processors.BertProcessing(sep, cls)
        tokenizer.enable_truncation(max_length)
        self._tokenizer = tokenizer
        self.vocab_size = len(vocabulary)
        self.vocabulary = vocabulary
        self.pad_token_id = vocabulary["[PAD]"]
        self.max_length = max_length

    def save(self, folder: Path) -> None:
        """As in `TextTokenizer`; once read back, special tokens written out in a text count as such."""
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        copy = Tokenizer.from_str(self._tokenizer.to_str())
        copy.no_truncation()  # transformers sets its own
        names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
        PreTrainedTokenizerFast(
            tokenizer_object=copy, model_max_length=self.max_length, padding_side="right", **names
        ).save_pretrained(folder)

    def _encode(self, texts: list[Any], seconds: list[str] | None) -> Iterable[Encoded]:
        words = isinstance(texts[0], list)
        pairs = texts if seconds is None else list(zip(texts, seconds, strict=True))
        encodings = self._tokenizer.encode_batch(pairs, is_pretokenized=words)
        return [Encoded(e.ids, e.word_ids if words else None) for e in encodings]


def _bert_words(lowercase: bool) -> tuple[Any, Any]:
    from tokenizers import normalizers, pre_tokenizers

    return normalizers.BertNormalizer(lowercase=lowercase), pre_tokenizers.BertPreTokenizer()


def train_vocabulary(texts: Sequence[str], vocab_size: int, lowercase: bool) -> dict[str, int]:
    """Token → number: special tokens, characters, characters inside a word (`##x`), then pieces as they are found.

    The library breaks ties between equally frequent pieces by their parts' numbers, and numbers the `##x` in the order
    of a hash map, which differs in every process. So all characters get their number here, in sorted order.
    """
    from tokenizers import Tokenizer, models, trainers

    normalizer, splitter = _bert_words(lowercase)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    common = sorted((c for c in counts if not c.isspace()), key=lambda c: (-counts[c], c))[:_ALPHABET]
    # Punctuation stands alone, so it never continues a word.
    inside = [c for c in common if len(splitter.pre_tokenize_str(f"a{c}a")) == 1]
    characters = [*sorted(common), *(f"##{c}" for c in sorted(inside))]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL, *characters],
        initial_alphabet=common,
        limit_alphabet=len(common),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return dict(tokenizer.get_vocab())


class Pretrained(TextTokenizer):
    """The tokenizer that a checkpoint was trained with.

    Args:
        checkpoint: local folder or hub id.
        max_length: longest text in tokens; the checkpoint's own limit, if that is lower.
        words: texts come as lists of words.
        key: of the configuration that names the checkpoint, for messages.

    Raises:
        UserError: there is no tokenizer, or it has no token to pad with.
    """

    def __init__(
        self, checkpoint: str, *, max_length: int, words: bool = False, key: str = "mixture.tokenizer"
    ) -> None:
        from transformers import AutoTokenizer

        from runner.backbones.hub import local_tokenizer

        folder = local_tokenizer(checkpoint, key)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                str(folder),
                local_files_only=True,
                trust_remote_code=False,
                **({"add_prefix_space": True} if words else {}),  # byte-level ones refuse words without it
            )
        except Exception as error:  # of several libraries: no such file, a damaged one, unknown kind
            raise UserError(
                f"the tokenizer of '{checkpoint}' cannot be loaded: {first_line(error)}",
                _WHERE,
            ) from error
        if len(self._tokenizer) <= len(self._tokenizer.all_special_ids):  # the library makes up an empty one
            raise UserError(f"'{checkpoint}' has no tokenizer", _WHERE)
        pad = self._tokenizer.pad_token_id
        if pad is None:  # causal models have none; the mask hides it
            pad = self._tokenizer.eos_token_id
        if pad is None:
            raise UserError(f"the tokenizer of '{checkpoint}' has neither a padding nor an end token")
        self.pad_token_id = int(pad)
        self.vocab_size = len(self._tokenizer)
        self.vocabulary = self._tokenizer.get_vocab()
        self.max_length = min(max_length, self._tokenizer.model_max_length)
        self._checkpoint = checkpoint

    def save(self, folder: Path) -> None:
        self._tokenizer.save_pretrained(folder)

    def _encode(self, texts: list[Any], seconds: list[str] | None) -> Iterable[Encoded]:
        words = isinstance(texts[0], list)
        if words and not self._tokenizer.is_fast:
            raise UserError(
                f"the tokenizer of '{self._checkpoint}' cannot say which word a token belongs to",
                "take another",
            )
        encoded = self._tokenizer(
            texts,
            seconds,
            is_split_into_words=words,
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [Encoded(ids, encoded.word_ids(i) if words else None) for i, ids in enumerate(encoded["input_ids"])]
