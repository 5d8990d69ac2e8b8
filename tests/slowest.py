"""Print the ten slowest tests of pytest runs: python tests/slowest.py RESULTS.xml …, which pytest --junitxml wrote."""

import sys
from xml.etree import ElementTree


def slowest(paths, count=10):
    """(seconds, test) of the slowest, the slowest first; setup and teardown included."""
    cases = [case for path in paths for case in ElementTree.parse(path).iter("testcase")]
    times = [(float(case.get("time")), f"{case.get('classname')}::{case.get('name')}") for case in cases]
    return sorted(times, reverse=True)[:count]


if __name__ == "__main__":
    print("The ten slowest tests:")
    for seconds, test in slowest(sys.argv[1:]):
        print(f"{seconds:7.1f} s  {test}")
