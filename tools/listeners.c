// SPDX-License-Identifier: BSD-2-Clause
#include "listeners.h"

#include <bpf/bpf.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/pidfd.h>

#include "lib/endpoint.h"
#include "lib/instance.h"
#include "lib/sockdiag.h"
#include "process.h"

/* pidfd_getfd: Linux 5.6; needs the right to trace the process. */
static json_t *trusted(int map, pid_t pid, int number)
{
	int pidfd _cleanup_fd_ = -1, fd _cleanup_fd_ = -1;
	struct tp_mark mark;

	pidfd = map < 0 ? -1 : pidfd_open(pid, 0);
	fd = pidfd < 0 ? -1 : pidfd_getfd(pidfd, number, 0);
	if (fd < 0)
		return tree_null();
	if (bpf_map_lookup_elem(map, &fd, &mark))
		return errno == ENOENT ? tree_bool(0) : tree_null();
	return tree_bool(mark.role == TP_ROLE_LISTENER);
}

static json_t *describe(const struct sockdiag_socket *s, int map)
{
	char text[ENDPOINT_STRLEN], comm[PROCESS_COMM_LEN];
	json_t *one = tree_object();
	pid_t pid;
	int number = process_find_socket(s->inode, &pid);

	if (s->local.family) {
		endpoint_format(&s->local, text);
	} else {
		snprintf(text, sizeof(text), "*:%u", s->local.port);
	}
	tree_set(one, "address", tree_string(text));
	tree_set(one, "pid", number < 0 ? tree_null() : tree_number(pid));
	tree_set(one, "comm", number < 0 ? tree_null() : tree_string(process_comm(pid, comm)));
	tree_set(one, "uid", tree_number(s->uid));
	tree_set(one, "trusted", number < 0 ? tree_null() : trusted(map, pid, number));
	return one;
}

json_t *listeners_describe(const char *instance, uint16_t port, uint16_t ports)
{
	struct sockdiag_query query = {.states = 1 << TCP_LISTEN};
	struct sockdiag_socket *sockets _cleanup_free_ = NULL;
	struct failure ignored;
	int map _cleanup_fd_ = -1;
	json_t *all;
	size_t count;

	if (sockdiag_tcp(&query, &sockets, &count, &ignored))
		return tree_null();
	all = tree_array();
	map = instance_open_map(instance, "", PIN_MAP_listeners, &ignored);
	for (size_t i = 0; i < count; i++)
		if ((uint16_t)(sockets[i].local.port - port) < ports)
			tree_add(all, describe(&sockets[i], map));
	return all;
}

json_t *listeners_serving(const json_t *listeners)
{
	int unknown = json_is_null(listeners);
	json_t *one;
	size_t i;

	json_array_foreach (listeners, i, one) {
		if (tree_true(one, "trusted"))
			return tree_bool(1);
		unknown |= json_is_null(json_object_get(one, "trusted"));
	}
	return unknown ? tree_null() : tree_bool(0);
}
