"""Training a sentencepiece model so that it loses nothing: what it is fed, and what its errors mean."""

import io
import re
from collections.abc import Iterable, Sequence

import sentencepiece

from data.errors import DataError
from data.tokenizers.training_text import (
    CHUNK,
    MAX_CHARACTERS,
    USUAL_COVERAGE,
    check_symbols,
    fitted,
    rare_characters,
    sentinel_names,
    training_chunks,
    without,
)

TRAINING_VERSION = 1  # to be raised with any change here that changes what is learned: cached tokenizers carry it
MODELS = ("bpe", "unigram")

_FEWEST_PIECES = 4
# sentencepiece skips any sentence with U+2585, its mark for unknown, takes U+2581 for a space, and refuses NUL.
_RESERVED = "\0\u2581\u2585"
_OWN_NAMES = re.compile("<unk>|</s>|<0x[0-9A-F]{2}>|<extra_id_[0-9]{1,2}>")


def train_model(
    texts: Iterable[str],
    vocab_size: int,
    seed: int,
    *,
    model: str = "bpe",
    coverage: float | None = None,
    byte_fallback: bool = True,
    symbols: Sequence[str] = (),
    sentinels: int = 0,
    max_characters: int = MAX_CHARACTERS,
) -> bytes:
    """A model of `vocab_size` ids, as the bytes of a `.model` file; equal inputs, equal bytes.

    `model`: "bpe" merges pairs (Sennrich et al. 2016); "unigram" prunes a large vocabulary to the pieces under which
    the text is most likely, and encodes by those likelihoods (Kudo 2018); it took 8 times as long on 5 MB.

    Texts are cut into chunks of whole lines. Above `max_characters` a sample of chunks is drawn by `seed`, each chunk
    with equal chance. Pieces do not cross from letters to punctuation, digits stand alone, a run of spaces is a piece
    of its own, line ends and tabs go with punctuation.

    `coverage`: part of the text whose characters get a piece each; None is 99.99 %, and at most half of the pieces.
    Rarer characters are left to the bytes. Without `byte_fallback` there are no bytes, and such a model loses text:
    rare characters become the unknown id and vanish in decoding, U+2581 comes back as a space; so None then is 99.99 %
    without such a limit.

    `symbols` are text that is never split and has one id each. `sentinels`: number of ids extra_0, extra_1, ... which
    stand for no text and which no text gives (T5, Raffel et al. 2020).

    Raises DataError, before training, where `vocab_size` is too small for all this, for a symbol that cannot be one,
    and where there is no text; after it, where `vocab_size` is larger than the texts can fill.
    """
    if model not in MODELS:
        raise DataError(f"sentencepiece model {model!r} is unknown: {', '.join(MODELS)} are trained")
    names = sentinel_names(sentinels)
    check_symbols(symbols, lambda symbol: bool(_OWN_NAMES.fullmatch(symbol)))
    fixed = 2 + (256 if byte_fallback else 0) + len(names) + len(symbols)
    smallest = fixed + _FEWEST_PIECES
    if vocab_size < smallest:
        raise DataError(_too_small(vocab_size, byte_fallback, names, symbols, smallest))
    chunks = training_chunks(texts, symbols, seed, max_characters)
    if coverage is None and not byte_fallback:
        coverage = USUAL_COVERAGE

    def attempt(size: int) -> tuple[bytes | None, int]:
        """A model and its size; or, where the chunks do not hold so many pieces, None and the number they hold."""
        most = (size - fixed) // 2 if coverage is None else size - fixed
        rare = rare_characters(chunks, coverage, most, _RESERVED)
        trained = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=without(rare, chunks),
                model_writer=trained,
                model_type=model,
                vocab_size=size,
                max_sentence_length=4 * CHUNK,  # bytes: 4 for each character at most
                character_coverage=1.0,
                byte_fallback=byte_fallback,
                control_symbols=names,
                user_defined_symbols=list(symbols),
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                split_digits=True,
                unk_id=0,
                eos_id=1,
                bos_id=-1,
                pad_id=-1,
                num_threads=1,  # stored in the model: a number of cores here would change the fingerprint
                minloglevel=2,
            )
        except RuntimeError as error:
            if held := re.search(r"too high .*<= (\d+)", str(error)):
                return None, int(held[1])
            raise DataError(f"sentencepiece could not be trained with vocab_size {size}: {error}") from error
        return trained.getvalue(), size

    return fitted(attempt, vocab_size, smallest)


def check_vocab(vocab_size: int) -> None:
    """Raises DataError, as `train_model`, for fewer ids than a model with bytes needs; for before texts are read."""
    if vocab_size < 258 + _FEWEST_PIECES:
        raise DataError(_too_small(vocab_size, True, [], (), 258 + _FEWEST_PIECES))


def _too_small(vocab_size: int, byte_fallback: bool, names: list[str], symbols: Sequence[str], smallest: int) -> str:
    parts = ["256 bytes"] if byte_fallback else []
    parts += ["unknown", "end of document"]
    parts += [f"{len(some)} {what}" for what, some in (("sentinels", names), ("symbols", symbols)) if some]
    needs = f"{', '.join(parts)} and {_FEWEST_PIECES} pieces need {smallest} or more"
    return f"a vocabulary of {vocab_size} ids is too small for sentencepiece: {needs}; or use tokenizer='byte'"
