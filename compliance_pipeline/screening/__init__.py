"""The engine: detectors turn media into findings, a policy pack turns findings into a verdict."""
