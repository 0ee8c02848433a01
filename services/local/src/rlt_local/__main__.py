"""The detached supervisor; `rlt up --detach` starts it."""

import sys

from rlt_local.up import main

sys.exit(main(sys.argv[1:]))
