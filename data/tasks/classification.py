"""Texts, or pairs of texts, of one class: sentiment, topics, intents, yes or no, the better of two answers."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data.errors import DataError
from data.tasks.examples import Labelled
from data.tasks.records import cells, csv_records, csv_rows, existing, field, json_records, lines, tab_records, text_of
from data.tasks.task import Task

SENTIMENTS = {"0": "negative", "1": "positive"}
AG_NEWS = {"1": "World", "2": "Sports", "3": "Business", "4": "Sci/Tech"}
THUCNEWS = (
    *("finance", "realty", "stocks", "education", "science"),
    *("society", "politics", "sports", "game", "entertainment"),
)
BANKING77 = """
    Refund_not_showing_up activate_my_card age_limit apple_pay_or_google_pay atm_support automatic_top_up
    balance_not_updated_after_bank_transfer balance_not_updated_after_cheque_or_cash_deposit beneficiary_not_allowed
    cancel_transfer card_about_to_expire card_acceptance card_arrival card_delivery_estimate card_linking
    card_not_working card_payment_fee_charged card_payment_not_recognised card_payment_wrong_exchange_rate
    card_swallowed cash_withdrawal_charge cash_withdrawal_not_recognised change_pin compromised_card
    contactless_not_working country_support declined_card_payment declined_cash_withdrawal declined_transfer
    direct_debit_payment_not_recognised disposable_card_limits edit_personal_details exchange_charge exchange_rate
    exchange_via_app extra_charge_on_statement failed_transfer fiat_currency_support get_disposable_virtual_card
    get_physical_card getting_spare_card getting_virtual_card lost_or_stolen_card lost_or_stolen_phone
    order_physical_card passcode_forgotten pending_card_payment pending_cash_withdrawal pending_top_up
    pending_transfer pin_blocked receiving_money request_refund reverted_card_payment? supported_cards_and_currencies
    terminate_account top_up_by_bank_transfer_charge top_up_by_card_charge top_up_by_cash_or_cheque top_up_failed
    top_up_limits top_up_reverted topping_up_by_card transaction_charged_twice transfer_fee_charged
    transfer_into_account transfer_not_received_by_recipient transfer_timing unable_to_verify_identity
    verify_my_identity verify_source_of_funds verify_top_up virtual_card_not_working visa_or_mastercard
    why_verify_identity wrong_amount_of_cash_received wrong_exchange_rate_for_cash_withdrawal
"""

Repairs = Counter[str] | None


def read_jsonl(path: str | Path, _: Repairs) -> Iterator[Labelled]:
    """{"text": …, "label": …} a line, and "pair" for a second text; a label is a string or a whole number."""
    for place, record in json_records(path):
        label = record.get("label")
        label = str(label) if type(label) is int else field(record, "label", str, place)
        pair = field(record, "pair", str, place) if "pair" in record else ""
        yield Labelled(place, field(record, "text", str, place), label, pair)


def read_sst2(path: str | Path, _: Repairs) -> Iterator[Labelled]:
    """Text and 0 or 1 between tabs; the header of GLUE, "sentence label", may be there."""
    for number, (place, (text, label)) in enumerate(cells(path, (2,))):
        if number or (text, label) != ("sentence", "label"):
            yield Labelled(place, text, _named(SENTIMENTS, label, place))


def read_chnsenticorp(path: str | Path, _: Repairs) -> Iterator[Labelled]:
    """A table with tabs whose header has `label`, 0 or 1, and `text_a`."""
    for place, record in tab_records(path, ("label", "text_a")):
        yield Labelled(place, record["text_a"], _named(SENTIMENTS, record["label"], place))


def read_imdb(path: str | Path, _: Repairs) -> Iterator[Labelled]:
    """A folder with `neg` and `pos`, one text file for each review; other folders (`unsup`) have no label."""
    root = existing(path)
    for label in ("neg", "pos"):
        files = sorted(existing(root / label).glob("*.txt"))
        if not files:
            raise DataError(f"{root / label} has no .txt file")
        for file in files:
            yield Labelled(f"{file}:1", text_of(file), {"neg": "negative", "pos": "positive"}[label])


def read_ag_news(path: str | Path, _: Repairs) -> Iterator[Labelled]:
    """CSV of class (1 to 4), title and description; a header that begins with "Class" may be there."""
    for number, (place, row) in enumerate(csv_rows(path)):
        if len(row) != 3:
            raise DataError(f"{place}: {len(row)} column(s), not class, title and description")
        if number or not row[0].startswith("Class"):
            yield Labelled(place, f"{row[1]} {row[2]}", _named(AG_NEWS, row[0], place))


def read_banking77(path: str | Path, _: Repairs) -> Iterator[Labelled]:
    """CSV with the columns text and category (Casanueva et al. 2020)."""
    for place, record in csv_records(path, ("text", "category")):
        yield Labelled(place, record["text"], record["category"])


def read_thucnews(path: str | Path, _: Repairs) -> Iterator[Labelled]:
    """Title and number of its class between tabs; the names of the classes are the lines of `class.txt` beside it."""
    names = {str(number): name for number, (_, name) in enumerate(lines(Path(path).expanduser().parent / "class.txt"))}
    for place, (text, label) in cells(path, (2,)):
        yield Labelled(place, text, _named(names, label, place))


def read_boolq(path: str | Path, _: Repairs) -> Iterator[Labelled]:
    """{"question": …, "passage": …, "answer": true} a line (Clark et al. 2019)."""
    for place, record in json_records(path):
        label = "yes" if field(record, "answer", bool, place) else "no"
        yield Labelled(place, field(record, "question", str, place), label, field(record, "passage", str, place))


def read_piqa(path: str | Path, _: Repairs) -> Iterator[Labelled]:
    """{"goal": …, "sol1": …, "sol2": …} a line; NAME.jsonl has 0 or 1 a line in NAME-labels.lst (Bisk et al. 2020)."""
    file = existing(path)
    answers = list(lines(file.with_name(f"{file.stem}-labels.lst")))
    records = list(json_records(file))
    if len(answers) != len(records):
        raise DataError(f"{file} has {len(records)} lines, its labels {len(answers)}: they must be parallel")
    for (place, record), (label_place, label) in zip(records, answers, strict=True):
        goal, first, second = (field(record, name, str, place) for name in ("goal", "sol1", "sol2"))
        yield Labelled(place, goal, _named({"0": "1", "1": "2"}, label, label_place), f"1: {first} 2: {second}")


def _named(names: dict[str, str], label: str, place: str) -> str:
    if label not in names:
        raise DataError(f"{place}: label {label!r} is not one of the {len(names)}: {', '.join(names)[:200]}")
    return names[label]


def _task(name: str, reader, source: str, prompt: str, labels: tuple[str, ...] = ()) -> Task:
    return Task(name, "classification", reader, "accuracy", source, prompt, labels)


_REVIEW = "Review: {text}\nIs it negative or positive?\n"
_TOPIC = "{text}\nThe topic of this text:\n"
_INTENT = "Customer: {text}\nThe intent of the customer:\n"

CLASSIFICATION = (
    _task("classification", read_jsonl, "classify: {text} {pair}", "{text}\n{pair}\nThe class of this text:\n"),
    _task("sst2", read_sst2, "sst2 sentence: {text}", _REVIEW, tuple(SENTIMENTS.values())),
    _task("imdb", read_imdb, "imdb review: {text}", _REVIEW, tuple(SENTIMENTS.values())),
    _task("chnsenticorp", read_chnsenticorp, "chnsenticorp: {text}", _REVIEW, tuple(SENTIMENTS.values())),
    _task("ag_news", read_ag_news, "ag_news: {text}", _TOPIC, tuple(AG_NEWS.values())),
    _task("banking77", read_banking77, "banking77: {text}", _INTENT, tuple(BANKING77.split())),
    _task("thucnews", read_thucnews, "thucnews: {text}", _TOPIC, THUCNEWS),
    _task("boolq", read_boolq, "boolq passage: {pair} question: {text}", "{pair}\n{text}?\n", ("no", "yes")),
    _task("piqa", read_piqa, "piqa goal: {text} {pair}", "{text}\n{pair}\nThe better solution:\n", ("1", "2")),
)
