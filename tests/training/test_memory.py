import platform
import sys

import pytest

from glimpose.training.memory import keep_freed_memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is Linux's")
def test_glibc_accepts_every_setting():

    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
