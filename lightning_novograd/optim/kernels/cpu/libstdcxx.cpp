// A function that std::vector calls when it is compiled by GCC 11 or later, and that no older libstdc++ has. With one of
// our own the library loads wherever torch does.

#include <new>

#if defined(__GLIBCXX__)
namespace std {

[[noreturn]] __attribute__((visibility("hidden"))) void __throw_bad_array_new_length() {
  throw bad_alloc();
}

}  // namespace std
#endif
