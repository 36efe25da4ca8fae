"""When the sample is measured, and where the numbers go."""

from __future__ import annotations


class MeteringMixin:
    """Every ``sampled_softmax.meter_every`` optimizer steps one batch is measured.

    All ranks measure at the same steps, each its own batch, and none waits for another.
    """

    _measured_step: int | None = None

    def measures_now(self, step: int) -> bool:
        """Once at a step, however many batches it sums up; not where training is exact."""
        every = self.joint.sampled_softmax.meter_every if self.joint.samples_now else 0
        if every == 0 or (step + 1) % every or step == self._measured_step:
            return False
        self._measured_step = step
        return True

    def log_measurement(self, measurement: dict[str, float]) -> None:
        """To every logger of the trainer, also at steps where Lightning logs nothing, and to its metrics."""
        if not measurement:
            return
        self.log_dict(measurement, logger=False)
        if self.trainer.is_global_zero:
            for logger in self.trainer.loggers:
                logger.log_metrics(measurement, step=self.trainer.global_step)
