"""NeMo instantiates only targets on its allow-list: add ours, without importing NeMo (that takes 5 s)."""

from __future__ import annotations

import wrapt

PREFIX = "nemo_sampled_rnnt."


def allow_when_nemo_is_imported() -> None:
    """Append our prefix to NeMo's allow-list, now or as soon as NeMo is imported; once."""

    def allow(common) -> None:
        if PREFIX not in common.ALLOWED_TARGET_PREFIXES:
            common.ALLOWED_TARGET_PREFIXES.append(PREFIX)

    wrapt.register_post_import_hook(allow, "nemo.core.classes.common")
