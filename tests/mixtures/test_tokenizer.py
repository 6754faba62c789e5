"""Tokenizers, trained and of a checkpoint."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys

import pytest

from runner.errors import UserError
from runner.mixtures.tokenizer import Pretrained, WordPiece

TEXTS = ["The cat sat on the mat.", "A dog, a cat!", "Dogs and cats never sat on the mats", "Café au lait"] * 3


def wordpiece(texts=TEXTS, **keys):
    return WordPiece(texts, **({"vocab_size": 120, "lowercase": True, "max_length": 16} | keys))


def ids(tokenizer, *texts, seconds=None):
    return [encoded.ids for encoded in tokenizer.encode(list(texts), seconds)]


def tokens(tokenizer, numbers):
    return [tokenizer._tokenizer.id_to_token(n) for n in numbers]


def test_special_tokens_and_pieces():
    tokenizer = wordpiece()
    assert tokenizer.pad_token_id == 0
    assert tokenizer.vocab_size == tokenizer._tokenizer.get_vocab_size() <= 120
    found = tokens(tokenizer, ids(tokenizer, "the CAT, sat")[0])
    assert found[0] == "[CLS]"
    assert found[-1] == "[SEP]"
    assert "".join(piece.removeprefix("##") for piece in found[1:-1]) == "thecat,sat"


def test_greedy_longest_match_as_in_the_paper():
    """Against a few lines of our own: the longest piece of the vocabulary, again and again."""
    tokenizer = wordpiece(vocab_size=60)
    vocabulary = tokenizer._tokenizer.get_vocab()

    def pieces(word):
        found, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in vocabulary:
                    found.append(piece)
                    start = end
                    break
            else:
                return ["[UNK]"]
        return found

    for word in ("cats", "mat", "dogs", "sand", "xyz", "never", "tacos"):
        assert tokens(tokenizer, ids(tokenizer, word)[0])[1:-1] == pieces(word)


def test_case_and_accents():
    folded, kept = wordpiece(), wordpiece(lowercase=False)
    assert ids(folded, "CAFE") == ids(folded, "café")
    assert ids(kept, "Café") != ids(kept, "café")


def test_pairs_and_truncation():
    tokenizer = wordpiece(max_length=8)
    (pair,) = ids(tokenizer, "the cat", seconds=["a dog"])
    assert tokens(tokenizer, pair).count("[SEP]") == 2
    (long,) = ids(tokenizer, "the cat sat on the mat " * 5)
    assert len(long) == 8
    assert tokens(tokenizer, long)[-1] == "[SEP]"
    (cut,) = ids(tokenizer, "the cat sat on the mat " * 5, seconds=["a dog"])
    assert tokens(tokenizer, cut)[-3:] == ["a", "dog", "[SEP]"], "the longer text is cut first"
    assert len(cut) == 8


def test_special_tokens_in_a_text_are_only_text():
    found = tokens(wordpiece(), ids(wordpiece(), "the [SEP] cat")[0])
    assert found.count("[SEP]") == 1


def test_words_say_where_their_tokens_are():
    tokenizer = wordpiece(vocab_size=60)
    (encoded,) = tokenizer.encode([["cats", "xyzzy", "sat"]])
    assert encoded.words[0] is None
    assert encoded.words[-1] is None
    assert [w for w in dict.fromkeys(encoded.words) if w is not None] == [0, 1, 2]
    assert len(encoded.words) == len(encoded.ids)


def test_many_texts_are_encoded_in_order():
    tokenizer = wordpiece()
    texts = [f"cat {'sat ' * (i % 5)}" for i in range(2500)]
    assert [e.ids for e in tokenizer.encode(texts)] == [ids(tokenizer, text)[0] for text in texts]


SCRIPT = """
import hashlib, sys
from runner.mixtures.tokenizer import WordPiece
texts = [f"word{i % 97} thing{i % 31} {chr(0x4e00 + i % 1500)} naive{i % 7}" for i in range(3000)]
if sys.argv[1] == "reversed":
    texts = texts[::-1]
tokenizer = WordPiece(texts, vocab_size=1400, lowercase=True, max_length=16)
print(hashlib.sha256(tokenizer._tokenizer.to_str().encode()).hexdigest())
"""


def test_the_vocabulary_is_the_same_in_every_process():
    """More characters than the alphabet holds and many ties: whatever hashing, threads and the texts' order."""
    runs = [("forward", "1", "0"), ("forward", "4", "1"), ("reversed", "4", "2"), ("forward", "2", "random")]
    found = set()
    for direction, threads, seed in runs:
        env = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": "true"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, direction], env=env, capture_output=True, text=True, check=True
        )
        found.add(done.stdout)
    assert len(found) == 1


# ---- of a checkpoint ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder with a BERT tokenizer."""
    from transformers import BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    own = wordpiece()
    BertTokenizerFast(tokenizer_object=own._tokenizer, model_max_length=12).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A folder with a byte-level tokenizer that has no padding token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2TokenizerFast

    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    GPT2TokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def test_the_tokenizer_of_a_local_checkpoint(bert, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    own, loaded = wordpiece(max_length=12), Pretrained(str(bert), max_length=64)
    assert (loaded.vocab_size, loaded.pad_token_id) == (own.vocab_size, own.pad_token_id)
    assert loaded.max_length == 12  # the checkpoint's own limit
    assert ids(loaded, *TEXTS) == ids(own, *TEXTS)
    assert ids(loaded, "the cat", "a", seconds=["a dog", "mat"]) == ids(own, "the cat", "a", seconds=["a dog", "mat"])
    assert [e.words for e in loaded.encode([["cats", "sat"]])] == [e.words for e in own.encode([["cats", "sat"]])]


def test_a_tokenizer_without_padding_pads_with_its_end(gpt2):
    loaded = Pretrained(str(gpt2), max_length=10)
    assert loaded.pad_token_id == loaded._tokenizer.eos_token_id
    assert loaded._tokenizer.decode(ids(loaded, "the cat sat")[0]) == "the cat sat"
    assert len(ids(loaded, "the cat sat " * 20)[0]) == 10


def test_byte_level_tokenizers_take_words_as_well(gpt2):
    (encoded,) = Pretrained(str(gpt2), max_length=20, words=True).encode([["cats", "sat"]])
    assert set(encoded.words) == {0, 1}


def test_a_checkpoint_without_tokenizer(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    for place in (str(tmp_path), "someone/unknown-model"):
        with pytest.raises(UserError) as caught:
            Pretrained(place, max_length=8)
        assert place in str(caught.value)
        assert "mixture.tokenizer" in str(caught.value)


def test_code_of_a_checkpoint_is_not_run(tmp_path):
    marker = tmp_path / "ran"
    (tmp_path / "tok.py").write_text(f"open({str(marker)!r}, 'w')\nclass Tok: pass\n")
    (tmp_path / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "tok.Tok"}}')
    (tmp_path / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["tok.Tok", null]}}')
    with pytest.raises(UserError):
        Pretrained(str(tmp_path), max_length=8)
    assert not marker.exists()


def _no_network(*_):
    raise OSError("a test must not use the network")


def test_a_digest_of_the_vocabulary_changes_with_the_texts():
    digests = {hashlib.sha256(wordpiece(t)._tokenizer.to_str().encode()).hexdigest() for t in (TEXTS, TEXTS[:2])}
    assert len(digests) == 2
