"""The CTC head and its loss in bounded memory: torch in, torch out. No NeMo."""

from nemo_sampled_rnnt.ctc.function import CTC, ctc_loss

__all__ = ["CTC", "ctc_loss"]
