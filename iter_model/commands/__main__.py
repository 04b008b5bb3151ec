"""`python -m iter_model.commands`: the `basicsr` command of this interpreter."""

import sys

from iter_model.commands import main

sys.exit(main())
