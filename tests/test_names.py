"""Two spellings of one name are one name, and two names are not."""

import pytest

from editforge.ground.names import name_key
from editforge.ground.plurals import plural, singular
from editforge.mine.vocabulary import same_words, spellings

PLURALS = """
    horse horses|rose roses|house houses|nose noses|cheese cheeses|vase vases|tortoise tortoises
    bus buses|cactus cactuses|cactus cacti|octopus octopuses|virus viruses|glass glasses|lens lenses
    gas gases|iris irises|atlas atlases|canvas canvases|church churches|branch branches|dish dishes
    fox foxes|axe axes|ax axes|box boxes|prize prizes|waltz waltzes|quiz quizzes|mustache mustaches
    tomato tomatoes|potato potatoes|hero heroes|photo photos|shoe shoes|horseshoe horseshoes|toe toes
    canoe canoes|wolf wolves|werewolf werewolves|knife knives|leaf leaves|loaf loaves|elf elves
    glove gloves|olive olives|wave waves|valve valves|slave slaves|giraffe giraffes|cliff cliffs
    man men|woman women|fireman firemen|child children|grandchild grandchildren|person people
    mouse mice|goose geese|foot feet|tooth teeth|ox oxen|die dice|cherry cherries|fly flies
    cookie cookies|movie movies|pie pies|tie ties|magpie magpies|monkey monkeys|kiwi kiwis|taxi taxis
    menu menus|emu emus|pizza pizzas|bee bees|tree trees|eye eyes|day days|oasis oases|bench benches
    christmas tree christmas trees|ear of corn ears of corn|loaf of bread loaves of bread
    glass of milk glasses of milk|fire engine fire engines|Wolf the wolves
"""


def pairs():
    for row in PLURALS.strip().splitlines():
        for pair in row.strip().split("|"):
            words = pair.split()
            one, many = words[: len(words) // 2], words[len(words) // 2 :]
            yield " ".join(one), " ".join(many)


@pytest.mark.parametrize(("one", "many"), [("Wolf", "the wolves"), *list(pairs())[:-1]])
def test_a_plural_is_its_singular_whichever_is_erased(one, many):
    assert name_key(one) == name_key(many)
    assert same_words(many, one) == same_words(one, many) == "same word"


# left: what cutting letters off the right could make of it
APART = """
    glas glass|bu bus|cactu cactus|len lens|ga gas|iri iris|atla atlas|new news|mar mars|car care
    plan plane|pin pine|cloth clothes|den dense|cop copse|corp corpse|bas bass|base bass|oman omen
    raman ramen|speciman specimen|short shorts|to toe|us use|mouse mousse|thi this|chao chaos
    jame james|pari paris|tenni tennis|cosmo cosmos|thermo thermos|specy species|sery series
    christma christmas|princes princess|gras grass|clas class|scar scarf|wol wolf|hoe hose|moos moose
    cart carton|star starfish|era erase|roes rose|she shelves|hal halves|bra brass|as ass|pas pass
"""


@pytest.mark.parametrize(
    "pair", [p.strip() for r in APART.strip().split("\n") for p in r.split("|")]
)
def test_words_that_are_no_plural_of_each_other_stay_two(pair):
    one, other = pair.split()
    assert name_key(one) != name_key(other)
    assert same_words(one, other) == same_words(other, one) == ""


def test_a_word_in_s_that_is_no_plural_is_its_own_singular():
    words = "glass bus cactus octopus lens gas iris compass grass atlas canvas tennis paris series"
    assert [singular(word) for word in words.split()] == words.split()


def test_a_plural_inside_a_phrase_is_seen():
    assert same_words("horses", "horse and rider") == "one contains the other"
    assert same_words("christmas trees", "tree") == "one contains the other"
    assert same_words("wolfhound", "wolves") == ""


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("branch", "branches"),
        ("horse", "horses"),
        ("glass", "glasses"),
        ("cactus", "cacti"),
        ("octopus", "octopuses"),
        ("human", "humans"),
        ("bus", "buses"),
        ("tomato", "tomatoes"),
        ("wolf", "wolves"),
        ("fireman", "firemen"),
        ("cherry", "cherries"),
        ("monkey", "monkeys"),
        ("christmas tree", "christmas trees"),
        ("ear of corn", "ears of corn"),
        ("wolves", "wolf"),
        ("churches", "church"),
        ("ears of corn", "ear of corn"),
        ("horses", "horse"),
        ("women", "woman"),
        ("Van Gogh", "Van Goghs"),
    ],
)
def test_the_other_number_of_a_name_is_spelled_as_in_english(name, other):
    assert spellings(name)[-1] == other


@pytest.mark.parametrize(("one", "many"), [p for p in pairs() if " " not in p[0] + p[1]])
def test_a_plural_that_is_made_is_read_back(one, many):
    assert name_key(plural(one)) == name_key(one)
    assert singular(plural(one)) != plural(one)
