"""The difficulty of the primer: every number range, list length and share of the generator."""

LARGEST = 20  # the largest number in sums, differences and sorted lists
LARGEST_IN_STORIES = 10  # the largest number of things in a story
LARGEST_IN_PHRASES = 10  # the largest number in a phrase to translate: "ten red apples"

COUNTED = (0, 1, 1, 2, 2, 3, 3, 4, 4, 5)  # how often the counted thing occurs in its list
OTHERS = (1, 2, 3)  # how many other things are in that list
SORTED = (3, 3, 4)  # how many items are to be sorted
REVERSED = (3, 3, 4)  # how many words are to be written backwards
FORMATTED = (1, 2)  # how many words are to be put in brackets or titles
JOINED = (2, 3)  # how many words are to be written as a list
REPEATED = (2, 3, 4)  # how often a word is to be repeated; this and the tuples above are drawn from evenly

# Weights of the instructions within their skill; the hardest ones of a skill come last.
INSTRUCTIONS = {
    "count/one": 7,
    "count/all": 2,
    "count/kinds": 1,
    "sort/rising": 4,
    "sort/falling": 2,
    "sort/days": 2,
    "sort/sizes": 2,
    "arithmetic/plus": 4,
    "arithmetic/minus": 3,
    "arithmetic/gain": 2,
    "arithmetic/loss": 2,
    "arithmetic/three": 1,
    "lookup/fact": 7,
    "lookup/friend": 2,
    "lookup/who": 1,
    "translate/word": 2,
    "translate/fact": 3,
    "translate/phrase": 5,
    "format/brackets": 2,
    "format/list": 3,
    "format/repeat": 2,
    "format/title": 2,
    "format/json": 2,
    "format/backwards": 2,
    "refuse/deed": 3,
    "refuse/secret": 1,
}

# Weights of the topics within the documents.
TOPICS = {
    "portrait": 6,
    "gathering": 2,
    "basket": 4,
    "sums": 3,
    "story": 2,
    "order": 4,
    "dictionary": 4,
    "shapes": 3,
    "customs": 1,
}

CARELESS = 0.5  # share of a careless teacher's answers that are careless
HELDOUT = 0.1  # share of all prompts, and of all documents, that is held out
