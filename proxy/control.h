/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The messages by which one tproxyd takes over from another, as bytes: one a packet of a UNIX
 * SOCK_SEQPACKET socket. No sockets in here, so that tests and fuzzers can call it.
 *
 *	newcomer			the one that serves
 *	HELLO: what I am	->	checks it
 *				<-	REFUSE: why not
 *				<-	OFFER: how many descriptors
 *				<-	FDS: their numbers, and the descriptors, in batches
 *	TAKEN			->	goes
 *	REFUSE: what I lack	->	serves on
 *
 * Numbers are in host order, as both ends are on one host. The header and REFUSE are the same in
 * every version, so that whoever refuses can be understood.
 */
#ifndef TPROXY_CONTROL_H
#define TPROXY_CONTROL_H

#include <stddef.h>
#include <stdint.h>

#include "shared.h"

#define CONTROL_VERSION	 1
#define CONTROL_FDS	 253 /* in one message: the kernel takes no more (SCM_MAX_FD) */
#define CONTROL_TEXT_LEN 1024
#define CONTROL_MAX	 1100 /* bytes of the longest message */

enum control_type {
	CONTROL_HELLO = 1,
	CONTROL_REFUSE,
	CONTROL_OFFER,
	CONTROL_FDS_BATCH,
	CONTROL_TAKEN,
};

struct control_hello {
	uint32_t abi;	/* ABI_VERSION */
	uint16_t port;	/* of the instance, the first one, host order */
	uint16_t ports; /* how many */
	uint64_t netns; /* inode number */
	char name[TP_NAME_LEN];
	char layout[SHARED_LAYOUT_LEN]; /* shared_layout() */
};

struct control_offer {
	uint32_t number;    /* that TAKEN repeats, and the memory holds (shared.h) */
	uint32_t count;	    /* of descriptors */
	int32_t top;	    /* the highest number among them */
	int32_t memory;	    /* which of them is the memory */
	int32_t connection; /* not among them: where the newcomer is to put its own end */
};

struct control_batch {
	uint32_t count;
	int32_t fd[CONTROL_FDS]; /* ascending, from 3 on */
};

struct control_message {
	enum control_type type;
	union {
		struct control_hello hello;
		char text[CONTROL_TEXT_LEN]; /* of REFUSE: printable ASCII */
		struct control_offer offer;
		struct control_batch batch;
		uint32_t taken;
	};
};

/* Returns the length of what it wrote. Of a text, what cannot be told is left out. */
size_t control_format(const struct control_message *m, uint8_t buf[CONTROL_MAX]);

/* 0; -EPROTONOSUPPORT: of another version; -EPROTO: not a message of ours. Every message that it
 * accepts is the very one that control_format() makes of it. */
int control_parse(const uint8_t *buf, size_t len, struct control_message *ret);

#endif
