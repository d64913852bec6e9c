package guest

import (
	"context"
	"crypto/sha256"
	_ "embed" // the recipe
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed image.sh
var recipe string

// Image is a guest that can be booted.
type Image struct{ Root, Kernel, Initrd string }

// Cached returns the guest's image below cache, with Debian's stock kernel (6.1). If there is none of this recipe it is made,
// which takes minutes and a Debian mirror (MIRROR in the environment names another than debootstrap's own).
func Cached(ctx context.Context, cache string, out io.Writer) (Image, error) {
	return cached(ctx, cache, out, "")
}

// CachedBackports is Cached with the kernel of bookworm-backports, which can send again what a dead process did not answer
// (6.9).
func CachedBackports(ctx context.Context, cache string, out io.Writer) (Image, error) {
	return cached(ctx, cache, out, "bookworm-backports")
}

func cached(ctx context.Context, cache string, out io.Writer, suite string) (Image, error) {
	sum := sha256.Sum256([]byte(recipe + suite))
	dir, err := filepath.Abs(filepath.Join(cache, "guest-"+hex.EncodeToString(sum[:6])))
	if err != nil {
		return Image{}, err
	}
	im := Image{Root: filepath.Join(dir, "root.img"), Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initrd.img")}
	if _, err := os.Stat(im.Root); err == nil {
		return im, nil
	}
	fmt.Fprintf(out, "making the guest's root disk in %s\n", dir)
	cmd := exec.CommandContext(ctx, "sh", "-s", dir, suite)
	cmd.Stdin = strings.NewReader(recipe)
	if text, err := cmd.CombinedOutput(); err != nil {
		return Image{}, fmt.Errorf("the guest's root disk: %w\n%s\nsee %s", err, text, filepath.Join(dir, "debootstrap.log"))
	}
	return im, nil
}

// Ext4 makes the file system image of a directory tree, size bytes large.
func Ext4(ctx context.Context, path, label, tree string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	if text, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-E", "nodiscard", "-L", label, "-d", tree, path).CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4 %s: %w\n%s", path, err, text)
	}
	return nil
}
