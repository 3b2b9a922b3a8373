"""The twenty questions of `smollm2.py` and the length of their answers. Imports nothing, because all sides use it."""

QUESTIONS = [
    "What is the capital of France?",
    "Explain gravity to a child.",
    "Write a short poem about autumn.",
    "How do I boil an egg?",
    "What is 12 plus 30?",
    "Name three primary colours.",
    "Who wrote Romeo and Juliet?",
    "Give me a recipe for pancakes.",
    "What does a compiler do?",
    "Why is the sky blue?",
    "List five animals that live in the sea.",
    "Translate 'good morning' into Spanish.",
    "What is a prime number?",
    "How does a bicycle stay upright?",
    "Describe the taste of an apple.",
    "What should I pack for a hike?",
    "Summarise the water cycle.",
    "Tell me a joke about cats.",
    "What is the largest planet?",
    "How do bees make honey?",
]
NEW = 64  # tokens of an answer
