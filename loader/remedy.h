/* SPDX-License-Identifier: BSD-2-Clause */
/* The next step for errors that say nothing about the object they met. */
#ifndef TPROXY_LOADER_REMEDY_H
#define TPROXY_LOADER_REMEDY_H

#include <errno.h>

/* `err` is an errno, of either sign. Begins with "; ", or is empty. */
static inline const char *remedy(int err)
{
	switch (err < 0 ? -err : err) {
	case EPERM:
	case EACCES:
		return "; run it as root, with CAP_BPF and CAP_NET_ADMIN";
	case ENOMEM:
	case ENOSPC:
		return "; free memory and run it again";
	case EBUSY:
	case EAGAIN:
	case EINTR:
		return "; run it again";
	}
	return "";
}

#endif
