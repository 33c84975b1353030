-- Seconds of P50, P95 and P99: the middle of the bucket in which each lies, at most 1.02% off.
[
    2 * pow(1.0206, min(bucket) FILTER (up_to >= 0.50 * total)) / 2.0206,
    2 * pow(1.0206, min(bucket) FILTER (up_to >= 0.95 * total)) / 2.0206,
    2 * pow(1.0206, min(bucket) FILTER (up_to >= 0.99 * total)) / 2.0206
]
