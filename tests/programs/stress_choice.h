/* SPDX-License-Identifier: BSD-2-Clause */
/* What the stress client does: its roles, their settings, and what each session is to be. */
#ifndef TPROXY_TESTS_STRESS_CHOICE_H
#define TPROXY_TESTS_STRESS_CHOICE_H

#include "stress.h"

#define ADDRESSES_MAX 32
#define RESET_MAX     8000 /* as much as is on its way when the reset comes */

enum role { ROLE_SHORT, ROLE_ECHO, ROLE_HALF, ROLE_LATE, ROLE_BULK, ROLE_FINISH, ROLE_COUNT };

enum setting {
	SET_SHORT, /* short requests at a time, of all kinds */
	SET_ECHO,  /* long sessions with some bytes there and back now and then */
	SET_HALF,  /* sessions with one direction closed, of both directions */
	SET_LATE,  /* at a time, to the port whose queue is full */
	SET_BULK,  /* transfers at a time, both ways at once */
	SET_MB,	   /* MB each way of a transfer */
	SET_PACE,  /* KB a second each way of a transfer; 0: all there is */
	SET_RATE,  /* short requests a second; 0: all there is */
	SET_COUNT,
};

static const char *const setting_names[SET_COUNT] = {"short", "echo", "half", "late",
						     "bulk",  "mb",   "pace", "rate"};
static const char *const kind_names[KIND_COUNT] = {"exchange", "tell",	 "echo",   "trickle",
						   "listen",   "finish", "refused"};

struct slot {
	enum role role;
	int fd, connected, shut, closing;
	struct sockaddr_storage to;
	socklen_t to_len;
	struct stress_request request;
	struct stress_reply reply;
	uint64_t sent, received;	/* the request and the reply included */
	uint64_t may_send, may_receive; /* by now; the same */
	uint64_t began_ms, progress_ms, next_ms;
};

static uint64_t settings[SET_COUNT], random_state;
static const char *addresses[ADDRESSES_MAX];
static int address_count, port;

static uint64_t any(uint64_t below)
{
	random_state++;
	return stress_mix(random_state) % below;
}

/* Of each hundred short ones: some that nobody takes, some that only tell, some that are reset. */
static void choose_short(struct stress_request *r)
{
	uint64_t dice = any(100), most = dice ? 1500 : any(4) ? 20000 : 200000;

	r->up = any(most);
	r->down = any(most);
	r->ending = any(ENDING_RESET);
	r->kind = KIND_EXCHANGE;
	if (dice >= 92) {
		r->kind = KIND_REFUSED;
	} else if (dice >= 84) {
		r->kind = KIND_TELL;
		r->ending = ENDING_CLIENT;
	} else if (dice >= 76) {
		r->ending = ENDING_RESET;
		r->up %= RESET_MAX;
		r->down %= RESET_MAX;
	}
}

static void choose_request(struct slot *s)
{
	struct stress_request *r = &s->request;

	*r = (struct stress_request){.magic = STRESS_MAGIC, .id = stress_mix(any(UINT64_MAX))};
	r->ending = ENDING_HALF;
	switch (s->role) {
	case ROLE_SHORT:
		choose_short(r);
		break;
	case ROLE_ECHO:
		r->kind = KIND_ECHO;
		r->up = r->down = STRESS_ENDLESS;
		break;
	case ROLE_HALF:
		r->kind = any(2) ? KIND_TRICKLE : KIND_LISTEN;
		r->up = r->kind == KIND_LISTEN ? STRESS_ENDLESS : any(1000);
		r->down = r->kind == KIND_TRICKLE ? STRESS_ENDLESS : 0;
		break;
	case ROLE_LATE:
		r->up = any(3000);
		r->down = any(3000);
		break;
	case ROLE_BULK:
		r->up = r->down = settings[SET_MB] << 20;
		break;
	case ROLE_FINISH:
		r->kind = KIND_FINISH;
		r->ending = ENDING_CLIENT;
		break;
	case ROLE_COUNT:
		break;
	}
}

/* Every address, also by its v4-mapped name, and every port. */
static void choose_address(struct slot *s)
{
	const char *ip = addresses[s->role == ROLE_LATE ? 0 : any(address_count)];
	uint16_t to = port + any(PORT_LATE);
	char mapped[INET6_ADDRSTRLEN + 8];

	if (s->role == ROLE_LATE)
		to = port + PORT_LATE;
	if (s->request.kind == KIND_REFUSED)
		to = port + PORT_NOBODY;
	snprintf(mapped, sizeof(mapped), "%s%s", strchr(ip, ':') || any(4) ? "" : "::ffff:", ip);
	if (stress_parse(mapped, to, &s->to, &s->to_len)) {
		fprintf(stderr, "stress: %s is no address\n", ip);
		exit(2);
	}
}

/* How much may be sent at first; more is allowed by the clock, see tick(). */
static void choose_pace(struct slot *s)
{
	s->may_send = sizeof(s->request);
	s->may_receive = UINT64_MAX;
	if (s->request.up != STRESS_ENDLESS)
		s->may_send += s->request.up;
	if (s->role == ROLE_BULK && settings[SET_PACE]) {
		s->may_send = sizeof(s->request);
		s->may_receive = sizeof(s->reply);
	}
}

static void choose(struct slot *s)
{
	choose_request(s);
	choose_address(s);
	choose_pace(s);
}

#endif
