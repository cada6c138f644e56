"""``python -m visionrl_operator run``."""

import asyncio
import sys

from visionrl_operator.options import parse


def main() -> int:
    options = parse(sys.argv[1:])
    from visionrl_operator import main as operator  # kopf takes a second; --help should not
    from visionrl_operator.logs import configure_logging

    configure_logging(options)
    try:
        return asyncio.run(operator.run(options))
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
