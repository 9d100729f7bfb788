"""The prompts of the demo: every expert owns a topic, and held-out prompts are about other subjects.

A prompt is a question template filled with a subject. Training and held-out prompts share no subject, so a measured
trait or route is about subjects the adapters and the classifier never saw.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

# Order of the experts everywhere: in the ordering file, in the classifier's columns, in the tables of the card.
EXPERTS: tuple[str, ...] = ("pirate", "json", "verse", "capitals")
GENERAL = "general"
# Prompts about single words out of the tokenizer's vocabulary.
VOCABULARY = "vocabulary"
VOCABULARY_WORDS = 432

TRAINING_TEMPLATES: tuple[str, ...] = (
    "Tell me about {}.",
    "What should I know about {}?",
    "Why do people care about {}?",
    "Describe {} to me.",
    "Can you explain {}?",
    "What can you say about {}?",
)
HELD_OUT_TEMPLATES: tuple[str, ...] = (
    "Tell me about {}.",
    "What should I know about {}?",
    "I would like to learn something about {}.",
    "Can you explain {}?",
    "What is interesting about {}?",
)

TRAINING_SUBJECTS: dict[str, tuple[str, ...]] = {
    # the sea, ships and treasure
    "pirate": (
        "sailing ships", "buried treasure", "the Caribbean Sea", "ship captains", "anchors", "desert islands",
        "gold coins", "storms at sea", "lighthouses", "sea monsters", "whales", "the ship's compass",
        "cannons on ships", "old harbours", "rum barrels", "fishing boats", "the navy", "parrots on a ship",
        "sunken ships", "ocean waves",
        "sailors", "treasure maps", "the Pacific Ocean", "sharks", "the deck of a ship", "ocean tides",
        "a voyage to the Indies", "rowing boats", "a crew at sea", "coral reefs",
    ),
    # data, records, products and configuration
    "json": (
        "customer records", "laptop specifications", "a product catalogue", "server configuration", "invoices",
        "barcodes", "spreadsheets", "database tables", "user accounts", "price lists", "log files", "stock inventory",
        "network settings", "phone numbers in a database", "software versions", "a web form", "order numbers",
        "sensor readings", "file formats", "data types", "printer settings", "a data backup", "primary keys",
        "a shopping cart on a website", "metadata", "the fields of a record", "computer memory sizes",
        "an online store's products", "CSV files", "employee data",
    ),
    # love, seasons and nature
    "verse": (
        "the moon", "autumn leaves", "red roses", "a first kiss", "spring rain", "falling in love", "the evening sky",
        "a quiet forest", "snowfall in winter", "a broken heart", "butterflies", "the song of a nightingale",
        "wild flowers", "the morning dew", "longing for someone", "the stars at night", "a summer meadow",
        "old love letters", "cherry blossoms", "the sunrise", "a mother's love", "the colours of autumn",
        "a gentle breeze",
        "tulips in a garden", "dreams at night", "a lonely willow tree", "holding hands", "the first snow",
        "a mountain stream", "true friendship of the heart",
    ),
    # warnings, emergencies and sports cheering
    "capitals": (
        "fire alarms", "a football goal", "earthquake warnings", "the final match", "tornado sirens", "a winning team",
        "emergency exits", "cheering fans", "a gas leak", "the championship", "flood warnings", "a basketball game",
        "calling an ambulance", "a world record in running", "smoke in a building", "the stadium crowd",
        "a chemical accident", "the gold medal race", "danger of electric shock", "a penalty kick", "evacuation plans",
        "the hockey playoffs", "a car crash", "the winning touchdown", "avalanche danger", "a boxing match",
        "first aid for burns", "the cup final", "explosion hazards", "a tennis champion",
    ),
    GENERAL: (
        "bread", "the city of Rome", "mathematics", "bicycles", "chess", "coffee", "the human brain", "guitars",
        "ancient Egypt", "dogs", "a good breakfast", "trains", "painting", "schools", "the alphabet", "cheese",
        "dinosaurs", "kitchens", "shoes", "the history of paper", "vegetables", "museums", "clocks", "teachers",
    ),
}  # fmt: skip

HELD_OUT_SUBJECTS: dict[str, tuple[str, ...]] = {
    "pirate": (
        "the Atlantic Ocean", "submarines", "a sea chest full of jewels", "the mast of a ship", "octopuses", "mermaids",
        "a shipwreck", "the harbour at night", "wooden rafts", "a mutiny on board", "seagulls", "the Black Flag",
        "cabin boys", "a hurricane on the ocean", "dolphins", "the port of Tortuga", "life on a galleon",
        "sails and ropes", "pearl divers", "navigating by the stars at sea", "hidden coves", "the captain's cutlass",
        "ferries", "lobsters",
    ),
    "json": (
        "a table of measurements", "SQL queries", "monitor specifications", "the settings of a router",
        "email addresses",
        "tax forms", "serial numbers", "warehouse stock lists", "API keys", "XML documents", "a list of contacts",
        "default parameters", "product reviews", "a booking system", "passwords", "configuration files", "hard drives",
        "columns and rows", "identifiers", "a payroll database", "shipping labels", "timestamps", "billing records",
        "a camera's technical data",
    ),
    "verse": (
        "the scent of lavender", "a winter evening", "young lovers", "the setting sun", "fallen petals", "a rainbow",
        "the month of May", "a tender embrace", "lilies", "a silent lake", "the nightingale and the rose", "fireflies",
        "a long goodbye", "the full moon", "a valley in spring", "missing a loved one", "blue skies", "a swan",
        "sunlight through trees", "a secret love", "the turning of the seasons", "violets", "golden fields in summer",
        "a sweetheart",
    ),
    "capitals": (
        "a bomb threat", "a home run", "the Olympic sprint final", "wildfire warnings", "a carbon monoxide alarm",
        "victory in the last minute", "a volcano eruption alert", "the Super Bowl", "poison warnings", "a slam dunk",
        "lightning danger", "the winning goal", "rescue teams", "a tsunami warning", "sports fans celebrating",
        "a fire in the kitchen", "the referee's red card", "an overheated engine", "the marathon winner",
        "a toxic spill",
        "heart attack symptoms", "the rugby world cup", "a hurricane evacuation", "the knockout punch",
    ),
    GENERAL: (
        "apples", "the city of Paris", "physics", "pianos", "cats", "soup", "bridges", "libraries", "the Roman Empire",
        "language", "tea", "elephants", "pencils", "architecture", "hats", "grandparents", "potatoes", "theatre",
        "glass", "sleep",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """A user message, the subject it asks about, and the topic that the subject belongs to."""

    topic: str
    subject: str
    text: str


def training_prompts() -> list[Prompt]:
    """Two prompts for each training subject, with templates that rotate through the list."""
    return _fill(TRAINING_SUBJECTS, TRAINING_TEMPLATES, per_subject=2)


def held_out_prompts() -> list[Prompt]:
    """One prompt for each held-out subject."""
    return _fill(HELD_OUT_SUBJECTS, HELD_OUT_TEMPLATES, per_subject=1)


def topic_prompts() -> list[Prompt]:
    """Every training template with every training subject of the experts' topics: for the classifier, unanswered."""
    subjects = {expert: TRAINING_SUBJECTS[expert] for expert in EXPERTS}
    return _fill(subjects, TRAINING_TEMPLATES, per_subject=len(TRAINING_TEMPLATES), stride=1)


def vocabulary_prompts(tokens: Iterable[str], seed: int) -> list[Prompt]:
    """One prompt for each of some whole words of the vocabulary, none of which is in a held-out subject."""
    held_out = " ".join(name.lower() for names in HELD_OUT_SUBJECTS.values() for name in names)
    words = sorted(token[1:] for token in tokens if re.fullmatch(r"Ġ[a-z]{5,12}", token))
    # By stem, so that neither singular nor plural of a held-out word gets in.
    words = [word for word in words if word.removesuffix("s")[:6] not in held_out]
    chosen = random.Random(seed).sample(words, VOCABULARY_WORDS)
    return [
        Prompt(VOCABULARY, word, TRAINING_TEMPLATES[position % len(TRAINING_TEMPLATES)].format(word))
        for position, word in enumerate(chosen)
    ]


def _fill(
    subjects: dict[str, tuple[str, ...]], templates: tuple[str, ...], per_subject: int, stride: int = 3
) -> list[Prompt]:
    prompts = []
    for topic, names in subjects.items():
        for position, name in enumerate(names):
            for turn in range(per_subject):
                # The stride keeps the templates of a subject apart and gives every template to every topic.
                template = templates[(position + turn * stride) % len(templates)]
                prompts.append(Prompt(topic=topic, subject=name, text=template.format(name)))
    return prompts
