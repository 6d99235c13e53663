/* Runs the fuzz target without a fuzzer: on the files that are named, or else on inputs of pseudo-random bytes, which
 * are the same ones each time. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define INPUTS 500
#define MOST_SIZE 1024

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void run_file(const char *path)
{
    static uint8_t data[1 << 20];
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        exit(1);
    }
    LLVMFuzzerTestOneInput(data, fread(data, 1, sizeof data, file));
    fclose(file);
}

static void run_random(void)
{
    uint64_t state = 1;
    for (int i = 0; i < INPUTS; i++) {
        uint8_t data[MOST_SIZE];
        const size_t size = (size_t)i * MOST_SIZE / INPUTS;
        for (size_t at = 0; at < size; at++) {
            state = state * 6364136223846793005 + 1442695040888963407;
            data[at] = (uint8_t)(state >> 56);
        }
        LLVMFuzzerTestOneInput(data, size);
    }
}

int main(int count, char **paths)
{
    for (int i = 1; i < count; i++)
        run_file(paths[i]);
    if (count == 1)
        run_random();
    return 0;
}
