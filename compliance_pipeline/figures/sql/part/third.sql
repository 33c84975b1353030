-- Of a bucket, the third of a doubling of seconds in which its upper end lies: k for (2^((k-1)/3), 2^(k/3)].
ceil(3 * bucket * ln(1.0206) / ln(2))::INTEGER
