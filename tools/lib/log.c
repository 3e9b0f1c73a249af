// SPDX-License-Identifier: BSD-2-Clause
#include "log.h"

#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

static const char *log_program = "tproxy";
static int log_max = LOG_INFO;
static int log_journal;

/* $JOURNAL_STREAM names the device and inode of the stream systemd connected (systemd.exec(5)). */
static int stderr_is_journal(void)
{
	const char *stream = getenv("JOURNAL_STREAM");
	unsigned long long dev, ino;
	struct stat st;

	return stream && sscanf(stream, "%llu:%llu", &dev, &ino) == 2 &&
	       !fstat(STDERR_FILENO, &st) && st.st_dev == dev && st.st_ino == ino;
}

void log_init(const char *program)
{
	log_program = program;
	log_journal = stderr_is_journal();
}

void log_set_level(int max)
{
	log_max = max;
}

int log_level_parse(const char *word, int *ret_level)
{
	static const struct {
		const char *word;
		int level;
	} levels[] = {{"err", LOG_ERR},
		      {"warning", LOG_WARNING},
		      {"notice", LOG_NOTICE},
		      {"info", LOG_INFO},
		      {"debug", LOG_DEBUG}};

	for (size_t i = 0; i < ARRAY_SIZE(levels); i++)
		if (!strcmp(word, levels[i].word)) {
			*ret_level = levels[i].level;
			return 0;
		}
	return -EINVAL;
}

size_t log_prefix(int priority, char *buf, size_t size)
{
	if (log_journal)
		return snprintf(buf, size, "<%d>", priority);
	return snprintf(buf, size, "%s: ", log_program);
}

void log_raw(const char *lines, size_t len)
{
	int saved = errno;

	/* A full disk or a closed stderr must not stop the service: the lines are lost. */
	if (write(STDERR_FILENO, lines, len) < 0)
		errno = saved;
}

void log_write(int priority, const char *fmt, ...)
{
	char line[2048];
	int saved = errno, n;
	va_list ap;

	if (priority > log_max)
		return;
	n = log_prefix(priority, line, sizeof(line));
	errno = saved; /* for %m */
	va_start(ap, fmt);
	n += vsnprintf(line + n, sizeof(line) - n, fmt, ap);
	va_end(ap);
	if (n > (int)sizeof(line) - 2)
		n = sizeof(line) - 2;
	line[n++] = '\n';
	log_raw(line, n); /* one write a line, so that lines of several processes do not mix */
	errno = saved;
}

int log_allowed(struct log_limit *limit, unsigned int *ret_missed)
{
	struct timespec now;
	uint64_t ms;

	clock_gettime(CLOCK_MONOTONIC, &now);
	ms = (uint64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
	if (!limit->begin_ms || ms - limit->begin_ms >= limit->interval_ms) {
		limit->begin_ms = ms;
		limit->count = 0;
	}
	if (limit->count >= limit->burst) {
		limit->missed++;
		return 0;
	}
	limit->count++;
	*ret_missed = limit->missed;
	limit->missed = 0;
	return 1;
}
