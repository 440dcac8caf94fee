"""What there is to run: `python -m fuzz`."""

import fuzz
from fuzz.tally import say

if __name__ == "__main__":
    say(str(fuzz.__doc__))
