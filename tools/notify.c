// SPDX-License-Identifier: BSD-2-Clause
#include "notify.h"

#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

int notify_listen(char ret_address[NOTIFY_ADDRESS_LEN], struct failure *f)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	socklen_t len = sizeof(addr);
	int fd _cleanup_fd_ = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), on = 1;

	/* Bound by the family alone, the kernel picks a free name: a NUL and five hex digits
	 * (unix(7)). */
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) ||
	    bind(fd, (struct sockaddr *)&addr, offsetof(struct sockaddr_un, sun_path)) ||
	    getsockname(fd, (struct sockaddr *)&addr, &len))
		return fail(f, -errno, "cannot open a notification socket: %m");
	snprintf(ret_address, NOTIFY_ADDRESS_LEN, "@%.*s",
		 (int)(len - offsetof(struct sockaddr_un, sun_path) - 1), addr.sun_path + 1);
	return TAKE_FD(fd);
}

/* Anybody may send to an abstract socket: the kernel says who did. */
static int sent_by_us(struct msghdr *msg)
{
	struct cmsghdr *c = CMSG_FIRSTHDR(msg);
	struct ucred cred;

	if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_CREDENTIALS)
		return 0;
	memcpy(&cred, CMSG_DATA(c), sizeof(cred));
	return cred.uid == geteuid();
}

int notify_ready(int fd)
{
	char text[1024], control[CMSG_SPACE(sizeof(struct ucred))];
	int ready = 0;

	for (;;) {
		struct iovec iov = {text, sizeof(text) - 1};
		struct msghdr msg = {.msg_iov = &iov,
				     .msg_iovlen = 1,
				     .msg_control = control,
				     .msg_controllen = sizeof(control)};
		ssize_t n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
		char *rest = text, *line;

		if (n < 0)
			return ready;
		text[n] = 0;
		while (sent_by_us(&msg) && (line = strsep(&rest, "\n")))
			ready |= !strcmp(line, "READY=1");
	}
}
