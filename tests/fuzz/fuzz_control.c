// SPDX-License-Identifier: BSD-2-Clause
/* An input is a message at the control socket. What is understood is told again in the same bytes.
 */
#include "../../proxy/control.h"
#include "fuzz.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc, (void)argv;
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct control_message m;
	uint8_t again[CONTROL_MAX];
	size_t len;

	if (control_parse(data, size, &m))
		return 0;
	len = control_format(&m, again);
	/* A refusal is understood in every version, and the version it says is not kept. */
	if (m.type == CONTROL_REFUSE)
		memcpy(again, data, 8);
	if (len != size || memcmp(again, data, size))
		abort();
	return 0;
}
