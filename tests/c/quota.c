/* Control groups as systems have them, and the quotas they grant: quota.c reads these texts for the system's files. */
#include <limits.h>
#include <stdio.h>
#include <string.h>

enum { MOST_TEXTS = 5 };

typedef struct {
    int want;
    const char *texts[MOST_TEXTS][2]; /* path, content */
} test_case;

static const test_case *now;

static FILE *open_text(const char *path) {
    for (int i = 0; i < MOST_TEXTS && now->texts[i][0] != NULL; ++i) {
        if (strcmp(now->texts[i][0], path) != 0) continue;
        FILE *file = tmpfile();
        if (file == NULL) return NULL;
        fputs(now->texts[i][1], file);
        rewind(file);
        return file;
    }
    return NULL;
}

#define fopen(path, mode) open_text(path)
#include "../../csrc/quota.c"

#define GROUP "/proc/self/cgroup"
#define TWO "/sys/fs/cgroup"
#define ONE "/sys/fs/cgroup/cpu"

static const test_case cases[] = {
    {INT_MAX, {{NULL, NULL}}},
    {2, {{GROUP, "0::/\n"}, {TWO "/cpu.max", "150000 100000\n"}}},
    {INT_MAX, {{GROUP, "0::/\n"}, {TWO "/cpu.max", "max 100000\n"}}},
    {1, {{TWO "/cpu.max", "1000 100000\n"}}},
    {INT_MAX, {{GROUP, "nonsense\n"}, {TWO "/cpu.max", "nonsense"}}},
    /* groups in groups: the least of their quotas counts */
    {1, {{GROUP, "0::/a/b\n"}, {TWO "/a/b/cpu.max", "max 100000\n"}, {TWO "/a/cpu.max", "100000 100000\n"}}},
    {3, {{GROUP, "0::/a/b\n"}, {TWO "/a/b/cpu.max", "300000 100000\n"}, {TWO "/a/cpu.max", "400000 100000\n"}}},
    {3, {{GROUP, "0::/a/b\n"}, {TWO "/a/b/cpu.max", "400000 100000\n"}, {TWO "/a/cpu.max", "300000 100000\n"}}},
    /* in a container the path may be that of the host */
    {5, {{GROUP, "0::/docker/abc\n"}, {TWO "/cpu.max", "410000 100000\n"}}},
    /* version 1 */
    {2,
     {{GROUP, "12:cpuset:/x\n4:cpuacct,cpu:/d/c\n0::/e\n"},
      {ONE "/d/c/cpu.cfs_quota_us", "200000\n"},
      {ONE "/d/c/cpu.cfs_period_us", "100000\n"},
      {ONE "/x/cpu.cfs_quota_us", "100000\n"},
      {ONE "/x/cpu.cfs_period_us", "100000\n"}}},
    {INT_MAX, {{GROUP, "4:cpu:/d\n"}, {ONE "/d/cpu.cfs_quota_us", "-1\n"}, {ONE "/d/cpu.cfs_period_us", "100000\n"}}},
};

int main(void) {
    int failed = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        now = &cases[i];
        const int got = frnn_quota();
        if (got == now->want) continue;
        printf("case %d: expected a quota of %d, got %d\n", (int)i, now->want, got);
        ++failed;
    }
    return failed > 0;
}
