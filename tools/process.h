/* SPDX-License-Identifier: BSD-2-Clause */
/* Processes as /proc shows them. */
#ifndef TPROXY_PROCESS_H
#define TPROXY_PROCESS_H

#include <stdint.h>
#include <sys/types.h>

#define PROCESS_COMM_LEN 64 /* kernel threads' names are longer than TASK_COMM_LEN */

/* In clock ticks after boot: with the pid, names a process once and for all. 0: no such process, or
 * a zombie. */
uint64_t process_start_time(pid_t pid);

/* Empty where there is no such process. Returns buf. */
const char *process_comm(pid_t pid, char buf[PROCESS_COMM_LEN]);

/*
 * Finds a process that has the socket of this inode open. Returns the number of its descriptor
 * there, or -ENOENT: none that can be seen.
 */
int process_find_socket(uint32_t inode, pid_t *ret_pid);

/* Whether pids as the kernel's programs record them are those that we see: 1 or 0. */
int process_pids_are_global(void);

/* Number of a network namespace (the inode of /proc/PID/ns/net; pid 0: our own); 0: not known. */
uint64_t process_netns(pid_t pid);

#endif
