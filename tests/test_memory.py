"""Freed memory stays with a loader's process."""

import subprocess
import sys

CODE = """
import resource, sys
import numpy as np
if sys.argv[1] == "keep":
    from data_modules.memory import keep_freed_memory
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(3):
    start = faults()
    for _ in range(10):
        np.ones(10_000_000, np.uint8)
        np.ones(60_000_000, np.uint8)
    count = faults() - start
print(count)
"""


def test_arrays_of_a_size_that_was_freed_need_no_new_pages():
    found = {}
    for word in ("keep", "plain"):
        done = subprocess.run([sys.executable, "-c", CODE, word], capture_output=True, text=True, check=True)
        found[word] = int(done.stdout)
    assert found["keep"] < 200
    assert found["plain"] > 5 * found["keep"] + 50
