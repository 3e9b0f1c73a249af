/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Latencies: every one is kept, so that percentiles are exact. Where a run takes more than there is
 * room for, the rest counts in the mean and the maximum only.
 */
#ifndef TPROXY_BENCH_SAMPLES_H
#define TPROXY_BENCH_SAMPLES_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define SAMPLES_MAX (1U << 20)

struct samples {
	uint64_t count, sum_ns, max_ns;
	uint32_t kept_ns[SAMPLES_MAX];
};

static inline uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

static inline void samples_add(struct samples *s, uint64_t ns)
{
	if (s->count < SAMPLES_MAX)
		s->kept_ns[s->count] = ns < UINT32_MAX ? ns : UINT32_MAX;
	s->count++;
	s->sum_ns += ns;
	if (ns > s->max_ns)
		s->max_ns = ns;
}

static inline int samples_compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

/* As a member of a JSON object, in microseconds. Sorts what was kept. */
static inline void samples_print(struct samples *s, const char *name)
{
	size_t n = s->count < SAMPLES_MAX ? s->count : SAMPLES_MAX;

	if (!n) {
		printf("\"%s\": null", name);
		return;
	}
	qsort(s->kept_ns, n, sizeof(*s->kept_ns), samples_compare);
	printf("\"%s\": {\"count\": %llu, \"mean\": %.3f, \"p50\": %.3f, \"p99\": %.3f, "
	       "\"p999\": %.3f, \"max\": %.3f}",
	       name, (unsigned long long)s->count, s->sum_ns / 1e3 / s->count,
	       s->kept_ns[n / 2] / 1e3, s->kept_ns[n * 99 / 100] / 1e3,
	       s->kept_ns[n * 999 / 1000] / 1e3, s->max_ns / 1e3);
}

#endif
