"""`python -m glmkit` is the `glm` command."""

import sys

from glmkit.cli.main import main

sys.exit(main())
