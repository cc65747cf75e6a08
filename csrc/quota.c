/* The quota of processor time that Linux control groups put on this process. */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "threads.h"

enum { LONGEST = 1024 /* of a control group's path; a longer one is cut, and then not found */ };

static double number_in(const char *directory, const char *group, const char *name) {
    char path[LONGEST + 64];
    double number = -1;
    snprintf(path, sizeof path, "%s%s/%s", directory, group, name);
    FILE *file = fopen(path, "r");
    if (file == NULL) return -1;
    if (fscanf(file, "%lf", &number) != 1) number = -1; /* "max" is no number: no quota */
    fclose(file);
    return number;
}

/* One group's quota in processors, or infinity: version 2 has it and its period in one file, version 1 in two. */
static double quota_of(const char *group) {
    char path[LONGEST + 64];
    double quota = -1, period = -1;
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", group);
    FILE *file = fopen(path, "r");
    if (file != NULL) {
        if (fscanf(file, "%lf %lf", &quota, &period) != 2) quota = -1;
        fclose(file);
    } else {
        quota = number_in("/sys/fs/cgroup/cpu", group, "cpu.cfs_quota_us");
        period = number_in("/sys/fs/cgroup/cpu", group, "cpu.cfs_period_us");
    }
    return quota > 0 && period > 0 ? quota / period : INFINITY;
}

/* Is one of these, between commas, the controller of processors? */
static int has_cpu(const char *controllers) {
    for (const char *c = controllers; c != NULL; c = strchr(c, ',')) {
        c += *c == ',';
        const size_t length = strcspn(c, ",");
        if (length == 3 && strncmp(c, "cpu", 3) == 0) return 1;
    }
    return 0;
}

/* The path of this process's group: of version 1 that of the controller of processors, of version 2 the only one. */
static void own_group(char group[LONGEST]) {
    char line[LONGEST];
    group[0] = '\0';
    FILE *file = fopen("/proc/self/cgroup", "r"); /* number:controllers:path */
    int found = 0;
    while (file != NULL && !found && fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (path == NULL) continue;
        *path++ = '\0';
        found = has_cpu(controllers + 1);
        if (found || controllers[1] == '\0') strcpy(group, path);
    }
    if (file != NULL) fclose(file);
}

int frnn_quota(void) {
    char group[LONGEST];
    double least = INFINITY;
    own_group(group);
    for (;;) { /* those above a group bind it too */
        const double quota = quota_of(group);
        if (quota < least) least = quota;
        char *parent = strrchr(group, '/');
        if (parent == NULL) break;
        *parent = '\0';
    }
    if (least >= INT_MAX) return INT_MAX;
    const int whole = (int)least;
    return whole < least ? whole + 1 : whole;
}
