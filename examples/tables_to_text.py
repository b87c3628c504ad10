"""Sentences for tables, from Python: python examples/tables_to_text.py [RUN OR PREFIX FILE]

Without an argument the newest finished run under runs/ writes them, else the embedded model.
"""

import sys

from mingpt_prefix import TableError, load_pipeline

TABLES = [
    "name[The Mill], eatType[pub], food[French], area[riverside]",  # as E2E writes a table
    {"name": "The Blue Door", "eatType": "coffee shop", "priceRange": "cheap"},
    '{"name": "The Old Barn", "eatType": "restaurant", "near": "The Mill"}',  # JSON, as in a file
]

pipeline = load_pipeline(*sys.argv[1:2])
print(pipeline)
for sentence in pipeline(TABLES):  # five beams
    print(sentence)
print(pipeline(TABLES[:1], beams=1))  # greedy
print(pipeline(TABLES[:1] * 2, beams=1, temperature=0.8, top_p=0.9, seed=1))  # sampled
try:
    pipeline(["name[The Mill"])
except TableError as error:
    print(error)
