// SPDX-License-Identifier: BSD-2-Clause
#include "check.h"

#include "load.h"
#include "log.h"
#include "mounts.h"
#include "plan.h"
#include "probe.h"
#include "repair.h"
#include "unclaimed.h"

/* Names everything that is missing, not only the first. */
static int check_system(struct failure *f)
{
	struct probe probes[PROBE_MAX];
	size_t count = probe_system(probes, PROBE_MAX), failed = 0;

	for (size_t i = 0; i < count; i++) {
		const struct probe *p = &probes[i];

		if (p->result == PROBE_OK)
			log_debug("%s: %s", p->what, p->found);
		else
			log_warning("%s: %s; %s", p->what, p->found, p->fix);
		failed += p->result == PROBE_FAIL;
	}
	if (!failed)
		return 0;
	return fail(f, -EOPNOTSUPP,
		    "the hooks cannot be loaded on this system: %zu requirement%s not met", failed,
		    failed == 1 ? " is" : "s are");
}

static int check_plan(const struct settings *settings, const struct cgroups *cgs,
		      const struct set *set, struct failure *f)
{
	struct object obj _cleanup_object_ = {0};
	struct plan plan;
	char done[256];
	int err;

	err = object_open(settings->max_connections, &obj, f);
	if (!err)
		err = plan_make(settings, cgs, set, &obj, &plan, f);
	if (!err && plan.fresh)
		err = object_load(&obj, f);
	else if (!err && plan.generation && !plan.keep_maps)
		err = object_load(&obj, f);
	else if (!err && (plan.generation || plan.reload))
		err = load_against(set, &obj, !plan.generation, f);
	if (!err)
		log_info("instance %s would be: %s", set->name,
			 plan_describe(&plan, settings, done));
	return err;
}

int check_run(const struct settings *settings, struct failure *f)
{
	struct set set _cleanup_set_ = {0}, side _cleanup_set_ = {0};
	struct cgroups cgs _cleanup_cgroups_ = {0};
	int err;

	err = check_system(f);
	if (!err)
		err = cgroups_open(settings, &cgs, f);
	if (!err)
		err = set_read_both(settings->common.name, &set, &side, f);
	if (!err)
		err = cgroups_check_overlap(&cgs, settings->common.name, f);
	if (!err)
		err = unclaimed_check(&cgs, &set, &side, f);
	if (err)
		return err;
	/* What comes after the repair depends on what it finds, so there is no plan to show yet. */
	if (repair_needed(&set, &side)) {
		log_info("instance %s would be: repaired, a run was interrupted; then brought to "
			 "the settings",
			 set.name);
		return 0;
	}
	return check_plan(settings, &cgs, &set, f);
}
