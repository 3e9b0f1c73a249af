// SPDX-License-Identifier: BSD-2-Clause
#include "log.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

static const char *log_program = "tproxy";
static int log_max = LOG_INFO;
static int log_journal;
static int log_sends;	      /* stderr is a socket */
static int log_cut;	      /* what was written last ends within a line */
static unsigned int log_lost; /* lines */

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

size_t log_prefix(int priority, char *buf, size_t size)
{
	if (log_journal)
		return snprintf(buf, size, "<%d>", priority);
	return snprintf(buf, size, "%s: ", log_program);
}

void log_nonblocking(void)
{
	struct stat st;
	int fd;

	if (fstat(STDERR_FILENO, &st))
		return;
	log_sends = S_ISSOCK(st.st_mode);
	/* Of a pipe or a terminal others may have the same file: a description of our own, so that
	 * theirs goes on to block. It takes the place of the old one. */
	if (!S_ISFIFO(st.st_mode) && !S_ISCHR(st.st_mode))
		return;
	fd = open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd >= 0)
		dup2(fd, STDERR_FILENO);
	fd_close(fd);
}

unsigned int log_take_lost(void)
{
	unsigned int lost = log_lost;

	log_lost = 0;
	return lost;
}

/* One that may not be opened anew, as it was another user's, is asked before it is written to; what
 * it then takes at once is PIPE_BUF. */
static ssize_t put(const char *text, size_t len)
{
	struct pollfd out = {.fd = STDERR_FILENO, .events = POLLOUT};

	if (log_sends)
		return send(STDERR_FILENO, text, len, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (poll(&out, 1, 0) != 1 || !(out.revents & POLLOUT))
		return -1;
	return write(STDERR_FILENO, text, len);
}

/* The end of the last line that begins in the first `max` bytes, or of the first line. */
static size_t whole_lines(const char *lines, size_t len, size_t max)
{
	const char *end;

	if (len <= max)
		return len;
	end = memrchr(lines, '\n', max);
	if (!end)
		end = memchr(lines, '\n', len);
	return end ? (size_t)(end + 1 - lines) : len;
}

void log_raw(const char *lines, size_t len)
{
	int saved = errno;

	/* A full disk or a closed stderr must not stop the service: the lines are lost. */
	if (log_cut && put("\n", 1) == 1)
		log_cut = 0;
	while (len) {
		size_t part = whole_lines(lines, len, PIPE_BUF);
		ssize_t n = put(lines, part);

		if (n > 0)
			log_cut = lines[n - 1] != '\n';
		for (size_t i = n > 0 ? n : 0; i < part; i++)
			log_lost += lines[i] == '\n';
		lines += part;
		len -= part;
	}
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
